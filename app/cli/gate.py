"""`tollgate gate`: the stream processor."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import common
from app.cli.common import Bootstrap, Prefix

app = common.new_app()


@app.command()
def gate(
    *,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, show_default=False, help="processes; default one per core")
    ] = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Decide triggers until Ctrl-C. Start more, on any machine, to share the lanes.

    Logs go to stderr; metrics, /livez and /readyz are on telemetry.port (9464).

    Example: tollgate gate --workers 2
    """
    from app.logs import configure_logging
    from app.stream import supervisor

    settings = common.settings_of(bootstrap, prefix, gate__workers=workers)
    configure_logging(settings.telemetry.log_level, settings.telemetry.log_format)
    try:
        code = supervisor.run(settings)
    except supervisor.UnmendableError as error:
        told = common.sentence_of(error.__cause__) if error.__cause__ is not None else None
        if told is None:
            raise
        common.fail(told[0], supervisor.UNMENDABLE + told[1])
    raise typer.Exit(code)
