"""`tollgate revocations`: who or what is no longer honoured, taking that back, and cleaning what has had its effect."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common, given
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.config import Kafka
    from app.gate.revocation import Revocation
    from app.revocations import Present

app = common.new_app(help="Who or what is revoked: list, lift, clean.")

COLUMNS: Final = ("issuer", "selector", "value", "since_s", "keep_until_s", "outlived", "reason", "by")


@app.command("list")
def list_(
    issuer: Annotated[str | None, typer.Option(help="only of this issuer", show_default=False)] = None,
    selector: Annotated[
        str | None, typer.Option(help="only of this kind: jti, subject, job, …", show_default=False)
    ] = None,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """What is revoked, in the order of writing; a record no gate can read refuses all that its key names.

    `outlived`: every token it refuses has expired, and `revocations clean` takes it away.

    Example: tollgate revocations list --issuer https://issuer.example -o json
    """
    from app import revocations
    from app.gate.revocation import SELECTORS

    given.one_of("--selector", selector, SELECTORS)
    present = common.run(revocations.read(common.settings_of(bootstrap, prefix).kafka))
    rows = [row for row in _rows(present) if issuer in {None, row["issuer"]} and selector in {None, row["selector"]}]
    common.print_rows(rows, COLUMNS, output)
    for key, complaint in present.complaints.items():
        common.say(f"WARNING: {key.decode(errors='replace')}: {complaint}")
    if not rows and (issuer is not None or selector is not None):
        common.fail("nothing matched", common.NOTHING_MATCHED)


@app.command()
def lift(
    selector: Annotated[
        str | None,
        typer.Argument(help="what kind: jti, subject, subject_prefix, job, class, kid or issuer", show_default=False),
    ] = None,
    value: Annotated[str | None, typer.Argument(help="as `revocations list` shows it", show_default=False)] = None,
    key: Annotated[
        str | None, typer.Option(help="the record's very key instead, as `list` warns of it", show_default=False)
    ] = None,
    issuer: Annotated[str | None, typer.Option(help="whose (default issuer.issuer)", show_default=False)] = None,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Take one revocation back: what it refused is honoured again within a second, as far as it has not expired.

    Nothing else is lifted: a token may be revoked by its jti and by its subject. It fails, and takes nothing back, when
    the same was revoked anew at that moment. A record of a later version, for which gates hold every decision, is
    lifted by its key.

    Example: tollgate revocations lift subject service:ci
    """
    from app import revocations
    from app.gate.revocation import SELECTORS, revocation_key

    if key is not None:
        if selector is not None:
            common.fail("give SELECTOR and VALUE, or --key", common.USAGE)
        _lift_key(common.settings_of(bootstrap, prefix).kafka, key.encode())
        return
    if selector is None or value is None:
        common.fail("give SELECTOR and VALUE, or --key", common.USAGE)
    given.one_of("SELECTOR", selector, SELECTORS)
    settings = common.settings_of(bootstrap, prefix, issuer__issuer=issuer)
    iss = settings.issuer.issuer
    named = revocation_key(iss, next(known for known in SELECTORS if known == selector), value)
    present = common.run(revocations.read(settings.kafka))
    entry = present.table.by_key().get(named)
    if entry is None:
        common.fail(f"{iss} has no revocation of {selector} {value!r}", common.NOTHING_MATCHED)
    if named not in present.offsets:
        common.fail("the record's key is not in its one spelling: `revocations list` warns of it; lift it by --key")
    common.run(revocations.take_back(settings.kafka, present, [named]))
    common.print_object(_row(entry, int(time.time())), output)
    common.say("lifted")


def _lift_key(kafka: Kafka, key: bytes) -> None:
    from app import revocations

    present = common.run(revocations.read(kafka))
    if key not in present.written:
        common.fail("no record has this key", common.NOTHING_MATCHED)
    common.run(revocations.take_back(kafka, present, [key]))
    common.say("lifted")


@app.command()
def clean(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Take away the revocations that outlived every token they refuse; those of keys and issuers stay for ever.

    Gates read the topic whole when they start, and nothing else makes it shorter. Nothing that may still refuse a token
    goes; it fails, and takes nothing more away, when one of them was written anew at that moment.

    Example: tollgate revocations clean --dry-run
    """
    from app import revocations

    settings = common.settings_of(bootstrap, prefix)
    present, now_s = common.run(revocations.read(settings.kafka)), int(time.time())
    entries = present.table.by_key()
    keys = [key for key in present.table.outlived(now_s) if key in present.offsets]
    if not dry_run:
        common.run(revocations.take_back(settings.kafka, present, keys))
    common.print_rows([_row(entries[key], now_s) for key in keys], COLUMNS, output)
    common.say(f"{len(keys)} of {len(entries)} {'would go (--dry-run)' if dry_run else 'taken away'}")


def _rows(present: Present) -> list[dict[str, Any]]:
    """In the order in which they were written."""
    entries, now_s = present.table.by_key(), int(time.time())
    return [_row(entries[key], now_s) for key in sorted(entries, key=lambda key: present.offsets.get(key, -1))]


def _row(entry: Revocation, now_s: int) -> dict[str, Any]:
    from app.authority.revoking import shown

    return shown(entry) | {"outlived": entry.is_outlived(now_s)}
