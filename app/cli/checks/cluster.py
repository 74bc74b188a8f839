"""The cluster: its broker, our topics, and transactions that stay open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from app.cli import common
from app.cli.checks.row import BAD, OK, WARN, Place, Row

if TYPE_CHECKING:
    from app.config import Settings

HELD_BACK_S: Final = 2.0  # an honest transaction is shorter


def broker(place: Place) -> Iterator[Row]:
    """That it answers, and whether its release is known to lose what it said."""
    timeout_s = place.settings.kafka.request_timeout_ms / 1_000
    about = place.admin.describe_cluster(request_timeout=timeout_s).result(timeout_s + 1)
    listed = ", ".join(f"{node.host}:{node.port}" for node in about.nodes)
    yield Row(OK, "broker", f"cluster {about.cluster_id}, {len(about.nodes)} broker(s): {listed}")
    from app.local.jars import KAFKA_VERSION
    from app.stream import broker_version

    try:
        version = common.run(broker_version.ask(place.settings.kafka))
    except NotImplementedError:
        yield Row(OK, "broker version", "it does not tell its features: a Kafka before 2.4, or another product")
        return
    flaw = version.flaw()
    if flaw is None:
        yield Row(OK, "broker version", version.told())
    else:
        mend = f"use another release: this project is proven on Kafka {KAFKA_VERSION}"
        yield Row(WARN, "broker version", f"{version.told()}: {flaw}", mend)


def topics(settings: Settings) -> Iterator[Row]:
    """Their settings, as far as a guarantee rests on them."""
    from app.stream import administration

    checked = administration.check(settings)
    for finding in checked.findings:
        found = f"{finding.setting} is {finding.found}, needed {finding.needed}: {finding.why}"
        yield Row(BAD if finding.fatal else WARN, f"topic {finding.topic}", found, finding.mend)
    if checked.deployment is not None:
        yield Row(OK, "topics", f"{checked.deployment.lanes} lanes, deployment {checked.deployment.birth_id}")


def transactions(place: Place) -> Iterator[Row]:
    """One that stays open holds back every record behind it: an emitter's triggers, or what a lane has written.

    KIP-664 names the producer. Those of a lane are ended by whoever takes it, or by the broker in their timeout.
    """
    from app.stream.topics import Topic

    before = place.ends(Topic, committed=True)
    high = place.ends(Topic, committed=False)
    stuck = {each for each in before if before[each] < high[each]}
    began_s = time.monotonic()
    ours_s = place.settings.gate.transaction_timeout_ms / 1_000 + HELD_BACK_S
    triggers = place.named(Topic.TRIGGERS)
    while stuck:
        time.sleep(HELD_BACK_S)
        after = place.ends(Topic, committed=True)
        stuck = {each for each in stuck if after[each] == before[each]}
        if all(topic == triggers for topic, _ in stuck) or time.monotonic() - began_s > ours_s:
            break
    open_s, bootstrap = time.monotonic() - began_s, place.settings.kafka.bootstrap
    for topic, partition in sorted(stuck):
        at = before[topic, partition]
        mend = _END_IT.format(bootstrap=bootstrap, topic=topic, partition=partition, at=at)
        yield Row(
            BAD, f"transactions on {topic}, partition {partition}",
            f"one has been open for more than {open_s:.0f} s at offset {at} and holds back up to "
            f"{high[topic, partition] - at} record(s)",
            mend if topic == triggers else _LANES_OWN,
        )  # fmt: skip
    if not stuck:
        yield Row(OK, "transactions", "none holds anything back")


_END_IT: Final = (
    "find its producer: kafka-transactions.sh --bootstrap-server {bootstrap} describe-producers --topic {topic} "
    "--partition {partition}; then, if it is gone: kafka-transactions.sh … abort --topic … --partition … "
    "--start-offset {at}"
)
_LANES_OWN: Final = (
    "its lane stands still until it is ended, and nothing is decided twice. Gates that run end theirs. One whose end "
    "the broker lost (see its version) was told committed: aborting it takes back what was decided"
)
