"""`tollgate doctor`: looks at broker, topics, transactions, keys, clock and gates; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from app.cli import common
from app.cli.checks import cluster, definitions, gates
from app.cli.checks.row import BAD, COLUMNS, WARN, Place, Row
from app.cli.common import Bootstrap, Output, Prefix

if TYPE_CHECKING:
    from app.config import Settings

app = common.new_app()


@app.command()
def doctor(output: Output = None, bootstrap: Bootstrap = None, prefix: Prefix = None) -> None:
    """Say what is wrong and how to mend it; exits 1 when something is.

    Looks at the broker, the topics, open transactions, registry and keys,
    clocks, gates and what waits for them. Changes nothing.

    Example: tollgate doctor -o json
    """
    settings = common.settings_of(bootstrap, prefix)
    rows = list(_examine(settings))
    common.print_rows([row._asdict() for row in rows], COLUMNS, output)
    bad = sum(row.verdict == BAD for row in rows)
    if bad:
        common.fail(f"{bad} of {len(rows)} are bad")


def _examine(settings: Settings) -> Iterator[Row]:
    """Later checks rest on earlier ones: without a broker or topics there is nothing more to ask."""
    from app.stream.inspection import connect

    try:
        admin = connect(settings.kafka)
    except Exception as error:
        yield Row(BAD, "broker", _told(error), "start one with `tollgate broker`, or name yours with --bootstrap")
        return
    place = Place(settings, admin)
    yield from _guarded("broker", lambda: cluster.broker(place))
    topics = list(_guarded("topics", lambda: cluster.topics(settings)))
    yield from topics
    if any(row.verdict == BAD for row in topics):
        return
    yield from _guarded("transactions", lambda: cluster.transactions(place))
    yield from _guarded("keys", lambda: common.run(definitions.registry_and_keys(settings)))
    yield from _guarded("revocations", lambda: common.run(definitions.revoked(settings)))
    yield from _guarded("gates", lambda: gates.gates(place))
    yield from _settings(settings)


def _guarded(what: str, look: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """A check that cannot be made is a finding, not the end of the others."""
    try:
        yield from look()
    except Exception as error:
        yield Row(BAD, what, _told(error))


def _told(error: Exception) -> str:
    told = common.sentence_of(error)
    return told[0] if told is not None else f"{type(error).__name__}: {error}"


def _settings(settings: Settings) -> Iterator[Row]:
    if settings.gate.sealing_key is None:
        yield Row(WARN, "sealing key", "none in these settings: dead letters keep no token, so an expired or mistaken "
                  "refusal cannot be replayed", "set gate.sealing_key to ops' public key")  # fmt: skip
    if settings.gate.insecure_dev_hs256 is not None:
        yield Row(WARN, "insecure_dev_hs256", "tokens signed with a shared secret are accepted",
                  "never in production: unset gate.insecure_dev_hs256")  # fmt: skip
