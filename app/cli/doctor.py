"""`tollgate doctor`: looks at broker, topics, transactions, keys, clock and gates; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.cli import common
from app.cli.common import Bootstrap, Output, Prefix
from app.cli.when import span, utc

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from app.config import Settings
    from app.registry import Kind
    from app.stream.inspection import FoundCheckpoint
    from app.stream.topics import Topic

app = common.new_app()

COLUMNS: Final = ("verdict", "what", "found", "mend")
HELD_BACK_S: Final = 2.0  # an honest transaction is shorter
MOVES_WITHIN_S: Final = 7.0  # a lane that fails tries again within 5 s
LOOK_EVERY_S: Final = 1.0
STANDS_STILL_S: Final = 90.0  # a lane that works writes a checkpoint every 30 s, if it has nothing to decide
OK, WARN, BAD = "ok", "warn", "bad"


class Row(NamedTuple):
    """One thing looked at."""

    verdict: str
    what: str
    found: str
    mend: str | None = None


class Place(NamedTuple):
    """What the checks share."""

    settings: Settings
    admin: AdminClient

    def named(self, topic: str) -> str:
        return self.settings.kafka.prefix + topic


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
    yield from _guarded("broker", lambda: _broker(place))
    topics = list(_guarded("topics", lambda: _topics(settings)))
    yield from topics
    if any(row.verdict == BAD for row in topics):
        return
    yield from _guarded("transactions", lambda: _transactions(place))
    yield from _guarded("keys", lambda: common.run(_registry_and_keys(settings)))
    yield from _guarded("revocations", lambda: common.run(_revocations(settings)))
    yield from _guarded("gates", lambda: _gates(place))
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


def _broker(place: Place) -> Iterator[Row]:
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


def _topics(settings: Settings) -> Iterator[Row]:
    from app.stream import administration

    checked = administration.check(settings)
    for finding in checked.findings:
        found = f"{finding.setting} is {finding.found}, needed {finding.needed}: {finding.why}"
        yield Row(BAD if finding.fatal else WARN, f"topic {finding.topic}", found, finding.mend)
    if checked.deployment is not None:
        yield Row(OK, "topics", f"{checked.deployment.lanes} lanes, deployment {checked.deployment.birth_id}")


# ── what waits ──


def _ends(place: Place, *topics: Topic, committed: bool) -> dict[tuple[str, int], int]:
    """Where each partition ends, by topic and number: for readers of committed records, or at all."""
    from confluent_kafka import IsolationLevel, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    from app.stream.inspection import describe

    timeout_s = place.settings.kafka.request_timeout_ms / 1_000
    found = describe(place.admin, place.settings).topics
    asked = {
        TopicPartition(place.named(topic), partition): OffsetSpec.latest()
        for topic in topics
        for partition in range(found[topic].partitions if topic in found else 0)
    }
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    answers = place.admin.list_offsets(asked, isolation_level=level, request_timeout=timeout_s)
    return {(each.topic, each.partition): future.result(timeout_s + 1).offset for each, future in answers.items()}


def _transactions(place: Place) -> Iterator[Row]:
    """One that stays open holds back every record behind it: an emitter's triggers, or what a lane has written.

    KIP-664 names the producer. Those of a lane are ended by whoever takes it, or by the broker in their timeout.
    """
    from app.stream.topics import Topic

    before = _ends(place, *Topic, committed=True)
    high = _ends(place, *Topic, committed=False)
    stuck = {each for each in before if before[each] < high[each]}
    began_s = time.monotonic()
    ours_s = place.settings.gate.transaction_timeout_ms / 1_000 + HELD_BACK_S
    triggers = place.named(Topic.TRIGGERS)
    while stuck:
        time.sleep(HELD_BACK_S)
        after = _ends(place, *Topic, committed=True)
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


# ── registry and keys ──


_UNREADABLE: Final[dict[Kind, str]] = {
    "identities": "gates refuse its tokens, and it gets none: mend it, or `tollgate identities remove`",
    "roles": "whoever has it gets no token: mend it and `tollgate policy apply`",
    "platforms": "its hosts get no token: mend it and `tollgate policy apply`",
    "rules": "it may deny something, so every lane holds: mend it and `tollgate policy apply`, or remove it",
}


async def _registry_and_keys(settings: Settings) -> Iterator[Row]:
    from app import registry
    from app.gate.definitions import TrustRule, trust_from_record, trust_key

    present = await registry.read_registry(settings)
    rows: list[Row] = []
    jobs = registry.definitions_in(present, "jobs")
    rows += [
        Row(BAD, f"job {row['name']}", f"no gate can read it: {row['error']}", "mend it and `tollgate jobs apply`")
        for row in jobs
        if "error" in row
    ]
    rows.append(
        Row(OK, "jobs", f"{len(jobs)} defined") if jobs
        else Row(WARN, "jobs", "none is defined: every trigger is refused", "`tollgate jobs apply FILE`")
    )  # fmt: skip
    for kind, consequence in _UNREADABLE.items():
        rows += [
            Row(BAD, f"{kind} {row['name']}", f"it cannot be read: {row['error']}", consequence)
            for row in registry.definitions_in(present, kind)
            if "error" in row
        ]
    rules: dict[str, TrustRule] = {}
    for registry_key, record in present.items():
        if not registry_key.startswith(trust_key("")):
            continue
        rule = trust_from_record(registry_key, record)
        if isinstance(rule, str):
            name = registry_key.decode(errors="replace")
            rows.append(Row(BAD, name, f"no gate can read it: {rule}", "mend it and `tollgate trust apply`"))
        else:
            rules[rule.issuer] = rule
    if not rules:
        rows.append(Row(WARN, "trust", "no issuer is trusted: every trigger is refused", "`tollgate trust apply FILE`"))
    rows += await _key_sets(settings, rules)
    return iter(rows)


async def _revocations(settings: Settings) -> Iterator[Row]:
    from app import revocations

    present = await revocations.read(settings.kafka)
    holding = present.table.unknown()
    rows = [Row(OK, "revocations", f"{len(present.table)} in effect")] if not present.complaints else []
    for key, complaint in present.complaints.items():
        if key in present.written:
            told = key.decode(errors="replace")
            verdict = BAD if key in holding else WARN
            rows.append(
                Row(verdict, "revocations", f"{told}: {complaint}", f"`tollgate revocations lift --key '{told}'`")
            )
    return iter(rows)


async def _key_sets(settings: Settings, rules: Mapping[str, Any]) -> list[Row]:
    """Load each issuer's set here and now, as a gate on this machine would."""
    from app.logs import log
    from app.trust import JwksFollower

    told: list[dict[str, Any]] = []
    with log.into(told):
        follower = JwksFollower(settings)
        follower.follow(rules)
        started = time.monotonic()
        await follower.start()
        took_s = time.monotonic() - started
        await follower.stop()
    failures = {entry["issuer"]: entry["why"] for entry in told if "issuer" in entry and "why" in entry}
    rows = []
    for issuer, rule in rules.items():
        keys = follower.ring.get(issuer)
        if keys is None:
            why = failures.get(issuer, "it did not load in time")
            rows.append(Row(BAD, f"keys of {issuer}", f"{rule.jwks}: {why}",
                            "until it loads, a trigger that names this issuer holds its whole lane, for everyone: mend "
                            "its file or server, or the trust rule's jwks"))  # fmt: skip
        else:
            kids = ", ".join(sorted(keys.keys)) or "none"
            rows.append(
                Row(OK, f"keys of {issuer}", f"{len(keys.keys)} key(s) ({kids}), read just now in {span(took_s)}")
            )
    return rows


# ── gates and clocks ──


def _gates(place: Place) -> Iterator[Row]:
    from app.stream.inspection import read_checkpoints
    from app.stream.topics import Topic

    ends = _ends(place, Topic.TRIGGERS, Topic.HANDOFFS, committed=True)
    triggers, handoffs = (
        {partition: end for (topic, partition), end in ends.items() if topic == place.named(which)}
        for which in (Topic.TRIGGERS, Topic.HANDOFFS)
    )
    checkpoints = read_checkpoints(place.settings, list(triggers))
    lags = {
        lane: max(0, triggers[lane] - found.checkpoint.triggers_offset)
        + max(0, handoffs[lane] - found.checkpoint.handoffs_offset)
        for lane, found in checkpoints.items()
    }
    group = _group(place, sum(lags.values()))
    yield group
    behind = {lane: lag for lane, lag in lags.items() if lag}
    still: Collection[int] = ()
    if group.verdict == OK:
        still = _standing_still(lambda lanes: read_checkpoints(place.settings, lanes), behind, checkpoints)
    yield _lag(behind, still, gates=group.verdict == OK)
    yield from _clock(place.settings, checkpoints)


def _standing_still(
    look: Callable[[list[int]], Mapping[int, FoundCheckpoint]], behind: Collection[int],
    before: Mapping[int, FoundCheckpoint],
) -> set[int]:  # fmt: skip
    """Those of these lanes whose position does not move for a while.

    By its age alone a checkpoint does not tell: a lane that is held writes one every second, and one that fails writes
    one whenever it is taken. By its position alone neither: where only a transaction's marker waits, it is written in
    half a minute.
    """
    still = set(behind)
    end = time.monotonic() + MOVES_WITHIN_S
    while still and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)
        now = look(sorted(still))
        still = {lane for lane in still if lane in now and _position(now[lane]) == _position(before[lane])}
    now_ms = time.time() * 1_000
    return {
        lane
        for lane in still
        if now[lane].appended_at_ms != before[lane].appended_at_ms
        or now_ms - now[lane].appended_at_ms > STANDS_STILL_S * 1_000
    }


def _position(found: FoundCheckpoint) -> tuple[int, int]:
    return found.checkpoint.triggers_offset, found.checkpoint.handoffs_offset


def _lag(behind: Mapping[int, int], still: Collection[int], *, gates: bool) -> Row:
    """Backlog is no fault while its lane moves. What waits are never read here: they are live tokens."""
    if not behind:
        return Row(OK, "lag", "nothing waits")
    worst = max(behind, key=lambda lane: behind[lane])
    found = f"{sum(behind.values())} offsets wait in {len(behind)} lane(s); lane {worst} has the most, {behind[worst]}"
    if not gates:
        return Row(WARN, "lag", f"{found}; nobody decides them", "start a gate: `tollgate gate`")
    if not still:
        return Row(OK, "lag", found)
    lanes = ", ".join(map(str, sorted(still)))
    return Row(BAD, "lag", f"{found}; nothing was decided within {span(MOVES_WITHIN_S)} in lane(s) {lanes}",
               "the log of the gate that has them says why: lane_held, lane_retry or lane_stopped; or it has taken "
               "them only just now")  # fmt: skip


def _group(place: Place, waiting: int) -> Row:
    timeout_s = place.settings.kafka.request_timeout_ms / 1_000
    name = place.named(place.settings.gate.group)
    group = place.admin.describe_consumer_groups([name], request_timeout=timeout_s)[name].result(timeout_s + 1)
    if not group.members:
        return Row(BAD if waiting else WARN, "gates", f"none is running (group {name}), {waiting} offsets wait",
                   "start one: `tollgate gate`")  # fmt: skip
    shares = ", ".join(f"{m.host} {len(m.assignment.topic_partitions)} lane(s)" for m in group.members)
    return Row(OK, "gates", f"{len(group.members)} worker(s): {shares}")


def _clock(settings: Settings, checkpoints: Mapping[int, FoundCheckpoint]) -> Iterator[Row]:
    """Kafka tells no time, so this rests on the newest checkpoint: its append time, and the gate's clock in it."""
    tolerance_s = settings.gate.clock_tolerance_s
    decided = [found for found in checkpoints.values() if found.checkpoint.lane_clock_ms]
    if not decided:
        yield Row(OK, "clock", "no gate has written a checkpoint yet, so there is nothing to compare")
        return
    newest = max(decided, key=lambda found: found.appended_at_ms)
    ahead_s = newest.appended_at_ms / 1_000 - time.time()
    if ahead_s > tolerance_s:
        yield Row(BAD, "clock here", f"{span(ahead_s)} behind the broker's", "set this machine's clock (NTP)")
    gate_off_s = (newest.checkpoint.lane_clock_ms - newest.appended_at_ms) / 1_000
    if abs(gate_off_s) > tolerance_s:
        yield Row(BAD, "clock of the gate", f"{span(gate_off_s)} from the broker's at the newest checkpoint; beyond "
                  f"{tolerance_s} s its lanes hold", "set the clocks of gate and brokers (NTP)")  # fmt: skip
    if ahead_s <= tolerance_s and abs(gate_off_s) <= tolerance_s:
        yield Row(OK, "clock", f"gate and broker were {span(abs(gate_off_s))} apart at the newest checkpoint, "
                  f"{utc(newest.appended_at_ms)}")  # fmt: skip


def _settings(settings: Settings) -> Iterator[Row]:
    if settings.gate.sealing_key is None:
        yield Row(WARN, "sealing key", "none in these settings: dead letters keep no token, so an expired or mistaken "
                  "refusal cannot be replayed", "set gate.sealing_key to ops' public key")  # fmt: skip
    if settings.gate.insecure_dev_hs256 is not None:
        yield Row(WARN, "insecure_dev_hs256", "tokens signed with a shared secret are accepted",
                  "never in production: unset gate.insecure_dev_hs256")  # fmt: skip
