"""`tollgate config`: what is in effect here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from app.cli import common
from app.cli.common import Output

app = common.new_app(help="Settings: check.")

MASK: Final = "********"  # whatever the secret's length


@app.callback()
def _group() -> None:
    """Settings: check."""


@app.command()
def check(output: Output = None) -> None:
    """Print every setting in effect, and where it is from; secrets masked.

    An unknown setting, or one that cannot be, is named (exit 2), as at the start of every command.

    Example: tollgate config check -o json
    """
    from app import config
    from app.trust import load_dev_secret

    load_dev_secret(config.load())  # what would stop a gate's start is said here, too
    rows = []
    for setting, value, source in config.effective():
        shown = MASK if setting.is_secret and value is not None else value
        rows.append({
            "setting": f"{setting.section}.{setting.name}",
            "value": str(shown) if isinstance(shown, Path) else shown,
            "source": source,
        })  # fmt: skip
    common.print_rows(rows, ("setting", "value", "source"), output)
