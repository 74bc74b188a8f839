"""`tollgate serve`: the HTTP door."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import common
from app.cli.common import Bootstrap, Prefix

app = common.new_app()


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(show_default=False, help="to listen on; default 127.0.0.1")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, show_default=False, help="to listen on; default 8080; 0: a free one"),
    ] = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Take triggers and hand out receipts over HTTP until Ctrl-C.

    Described at /openapi.json and /docs. Logs go to stderr; metrics, /livez
    and /readyz are on serve.internal_port (8081). Several may run.

    Example: tollgate serve --port 8080
    """
    from app.api import server
    from app.logs import configure_logging
    from app.stream import administration

    settings = common.settings_of(bootstrap, prefix, serve__host=host, serve__port=port)
    configure_logging(settings.telemetry.log_level, settings.telemetry.log_format)
    checked = administration.check(settings)
    if checked.deployment is None:
        common.fail(checked.complaint)
    server.run(settings, checked.deployment)
