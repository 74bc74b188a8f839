"""Rows of what strangers and issuers send: poison, sizes, revocations, broken key sets."""

from __future__ import annotations

import base64
import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from confluent_kafka import Producer

from tests.campaign.load import Special
from tests.campaign.report import quantiles
from tests.campaign.stage import ROOT, CampaignGate, Fault, Stage
from tests.campaign.watch import Expected
from tests.support.invariants import Sent
from tests.support.issuer import ISSUER, JOB, ORG, SUBJECT, OtherIssuer

VECTORS = ROOT / "tests" / "vectors"
MIB = 1 << 20
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
RSS_GROWTH_MAX_MIB = 256
HONOURED_S = 1.0  # a revocation, after its record stands on the topic (I14)
BURST = 50
WITHOUT_POISON = 100  # good triggers
EXPECTED_STORM = 10_000  # of unknown kids, for each broken form
NOTICED_S = 30.0  # by when gates have said what they make of a key set; they look at the file every few seconds
ROTATED = 10  # triggers by a key that is new in the set


# ── F15: poison ──

# Of JSONTestSuite's documents, given as whole triggers, those that are refused for another reason than bad JSON.
ANOTHER_REASON = {
    "n_structure_100000_opening_arrays.json": "json_too_deep",
    "n_structure_open_array_object.json": "json_too_deep",
    "i_structure_500_nested_arrays.json": "json_too_deep",
    "y_object_duplicated_key.json": "json_duplicate_member",
    "y_object_duplicated_key_and_value.json": "json_duplicate_member",
    "y_object_empty.json": "token_missing",
}
# As parameters of good triggers: whoever formats, splits, logs or runs them would show it.
AWKWARD = (
    "", " ", "\x00", "\x1b[31m\r\n", "\u202eabc", "\ufeff", "\U0001f469\u200d\U0001f469", "Å\u030a", "İI", "ß", "null", "NaN", "-0",
    "1e309", "0x1f", "__proto__", "${jndi:ldap://x}", "{{7*7}}", "%s%n%x", "{0.__class__}", "'; DROP TABLE jobs;--",
    "$(reboot)", "`id`", "../../etc/passwd", "<script>", "\t,;|\"'", "C:\\nul", "\ud83d\ude00", "\u0085\u2028", "a" * 10_000,
)  # fmt: skip


def poisons(stage: Stage) -> Iterator[tuple[Sent, bytes | None]]:
    """For ever: every vector once and again, between them bytes at random. Each with the reason it must get; of tokens
    by strangers, which are wrong in several ways at once, only that they are refused."""
    whole = json.loads((VECTORS / "wycheproof" / "json_web_signature_test.json").read_bytes())
    shown = [test["jws"] for group in whole["testGroups"] for test in group["tests"] if isinstance(test["jws"], str)]
    values: list[tuple[Sent, bytes | None]] = [
        (_bad("value_missing"), None),
        (_bad("json_malformed"), b""),
        (_bad("json_malformed"), '{"job": "x"}'.encode("utf-16")),
        (_bad("json_too_deep"), b'{"params":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        (_bad("json_duplicate_member"), b'{"job": "a", "job": "b"}'),
        (_bad("token_missing"), b'{"job": "a"}'),
        (_bad("token_too_large"), json.dumps({"job": JOB, "token": "." * 100_000}).encode()),
    ]
    parsing = sorted((VECTORS / "JSONTestSuite" / "test_parsing").glob("*.json"))
    values += [(_bad(_reason_of(path.name)), path.read_bytes()) for path in parsing]
    values += [(_bad(None), json.dumps({"job": JOB, "token": jws}).encode()) for jws in shown]
    values += [
        (Sent(None, "good"), json.dumps({"job": JOB, "token": stage.load.webhook(), "params": {"text": text}}).encode())
        for text in AWKWARD
    ]
    while True:
        yield from values
        for _ in range(len(values)):
            yield _bad("json_malformed"), b"\xff" + stage.dice.randbytes(stage.dice.randint(0, 400))


def _reason_of(name: str) -> str:
    """Objects hold members that a trigger has not; whatever else is no object."""
    if name in ANOTHER_REASON:
        return ANOTHER_REASON[name]
    return "envelope_malformed" if name.startswith("y_object") else "json_malformed"


def _bad(reason: str | None) -> Sent:
    return Sent(None, "rejected", reason)


def poison(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """A fifth of the stream is poison. How long a good trigger right behind each burst waits is told, and how long others
    did before; memory stays bounded. What counts is what the broker took."""
    before = _peaks(stage)
    alone = stage.watcher.expect()
    for _ in range(WITHOUT_POISON):
        _offer_good(stage, alone)
        time.sleep(0.1)
    stage.until(lambda: alone.all_answered(WITHOUT_POISON), 30)
    source = poisons(stage)
    taken: list[str] = []
    behind = stage.watcher.expect()

    def some_were_taken(before: int) -> bool:
        return not stage.load.offered and len(taken) > before

    goes_on = True
    while goes_on and len(taken) < count:
        before_round = len(taken)
        for _ in range(BURST):
            sent, value = next(source)
            stage.load.offer(Special(sent, value, taken=taken.append))
        _offer_good(stage, behind)
        time.sleep(BURST / max(stage.load.rate / 4, 1))
        # Where nothing is decided any more, nothing is sent.
        goes_on = stage.until(functools.partial(some_were_taken, before_round), 60)
        told(len(taken))
    stage.until_caught_up()
    stage.counts[row] = len(taken)
    stage.note(Fault(row, "poison", time.monotonic(), effective=True))
    stage.notes.append(
        f"a good trigger behind {BURST} bad ones waited for its receipt, p50 / p99: {quantiles(behind.seconds())}; before "
        f"there were any: {quantiles(alone.seconds())}"
    )
    _memory(stage, before)


def _offer_good(stage: Stage, answers: Expected) -> None:
    good = json.dumps({"job": JOB, "token": stage.load.webhook()}).encode()
    stage.load.offer(Special(Sent(None, "good"), good, taken=answers.add))


# ── F16: sizes ──


def sizes(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """Everything from nothing to the largest record; batches that expand beyond all bounds. What the broker took counts."""
    before = _peaks(stage)
    largest = MIB - 1_000
    forms: tuple[Callable[[], Special], ...] = (
        lambda: Special(_bad("json_malformed"), b"\xff" * stage.dice.randint(0, largest)),
        lambda: Special(_bad("headers_malformed"), _filled(stage, 0), headers=[(f"h{n}", b"v") for n in range(1_000)]),
        lambda: Special(_bad("record_too_large"), _filled(stage, 0), headers=[("big", b"h" * (largest - 2_000))]),
        lambda: Special(_bad("payload_too_large"), _filled(stage, stage.dice.randint(600_000, largest - 2_000))),
        lambda: Special(Sent(None, "good"), _filled(stage, stage.dice.randint(0, 400_000))),
    )
    taken: list[str] = []
    bombs = max(count // 20, 1)
    for number in range(count - bombs):
        stage.load.offer(forms[number % len(forms)]()._replace(taken=taken.append))
        stage.until(lambda: not stage.load.offered, 20)
        time.sleep(0.05)
        told(number)
    producer = Producer(
        {
            "bootstrap.servers": stage.bootstrap,
            "compression.type": "zstd",
            "message.max.bytes": 230 * MIB,
            "log_level": 2,
        }
    )
    bomb = bytes(210 * MIB)
    announced = []
    for number in range(bombs):
        uid = stage.load.announce(_bad("batch_too_large"))
        announced.append(uid)
        producer.produce(
            f"{stage.prefix}triggers", bomb, uid, partition=stage.dice.randrange(stage.lanes),
            on_delivery=lambda error, _, uid=uid: stage.load.told(uid, error),
        )  # fmt: skip
        producer.flush(30)
        told(count - bombs + number)
    stage.until_all_decide("the bombs")
    stage.counts[row] = len(taken) + sum(uid in stage.load.taken for uid in announced)
    stage.note(Fault(row, "sizes and bombs", time.monotonic(), effective=True))
    _memory(stage, before)


def _filled(stage: Stage, size: int) -> bytes:
    token = stage.load.webhook()
    return json.dumps({"job": JOB, "token": token, "params": {"fill": "x" * size}}).encode()


def _peaks(stage: Stage) -> dict[str, int]:
    return {gate.run: _peak_mib(gate) for gate in stage.gates if gate.alive}


def _peak_mib(gate: CampaignGate) -> int:
    found = PEAK.search(Path(f"/proc/{gate.pid}/status").read_text())
    return int(found[1]) // 1024 if found else 0


def _memory(stage: Stage, before: dict[str, int]) -> None:
    stage.until_caught_up()
    grown = {run: peak - before[run] for run, peak in _peaks(stage).items() if run in before}
    worst = max(grown.values(), default=0)
    stage.notes.append(f"peak memory of a gate grew by at most {worst} MiB")
    if worst > RSS_GROWTH_MAX_MIB:
        stage.broken.append(f"poison_apart: a gate grew by {worst} MiB")


# ── F21: revocations ──


def revocations(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """Tokens that were good, each revoked: whatever is appended more than a second later is refused. A revoked token
    counts when it was shown again."""
    late: list[str] = []
    writer = Producer({"bootstrap.servers": stage.bootstrap, "acks": "all", "log_level": 2})
    done = 0
    while done < count:
        burst = [
            stage.issuer.token("many", jti=f"revoked-{done + number}") for number in range(min(BURST, count - done))
        ]
        ids = stage.watcher.expect()
        for number, token in enumerate(burst):
            key = f"revoke-{done + number}"
            value = json.dumps({"job": JOB, "token": token, "idempotency_key": key}).encode()
            stage.load.offer(Special(Sent(key, "good"), value, taken=ids.add))
        size = len(burst)
        if not stage.until(lambda ids=ids, size=size: not stage.load.offered and ids.all_answered(size), 60):
            stage.broken.append("revoked_in_time: triggers before a revocation were not decided within 60 s")
            return
        if done % (4 * BURST) == 2 * BURST:  # the next ones are read by gates that have just restored
            ready = [gate for gate in stage.gates if gate.lanes]
            if ready:
                ready[0].kill()
                ready[0].start()
        for number in range(len(burst)):
            jti = f"revoked-{done + number}"
            record = {
                "issuer": ISSUER, "selector": "jti", "value": jti, "since_s": int(time.time()), "reason": "campaign",
                "by": "campaign", "keep_until_s": 0,
            }  # fmt: skip
            key = json.dumps([ISSUER, "jti", jti], separators=(",", ":")).encode()
            writer.produce(f"{stage.prefix}revocations", json.dumps(record).encode(), key, partition=0)
        writer.flush(30)
        at = time.monotonic()
        time.sleep(HONOURED_S)
        for number, token in enumerate(burst):
            value = json.dumps({"job": JOB, "token": token, "idempotency_key": f"revoke-{done + number}-late"}).encode()
            stage.load.offer(Special(_bad("token_revoked"), value, taken=late.append))
        done += len(burst)
        stage.until(lambda done=done: len(late) >= done, 30)
        stage.counts[row] = len(late)
        told(len(late))
        stage.note(Fault(row, f"{len(burst)} tokens revoked", at, effective=True))


# ── F20: key sets ──


def key_sets(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """The issuer's JWK Set turns bad in every way while tokens of its last good one go on being shown."""
    file = stage.directory / "operator" / "jwks.json"
    good = file.read_bytes()
    whole = json.loads(good)
    private = {"kty": "oct", "k": base64.urlsafe_b64encode(b"x" * 32).decode(), "kid": "k1", "alg": "HS256"}
    forms: dict[str, bytes | None] = {
        "gone": None, "empty": b"", "HTML": b"<html>503</html>", "10 MB": b'{"keys":[' + b" " * (10 * MIB) + b"]}",
        "no keys": b'{"keys":[]}', "duplicate kid": json.dumps({"keys": whole["keys"] * 2}).encode(),
        "symmetric key in it": json.dumps({"keys": [private]}).encode(), "cut off": good[: len(good) // 2],
        "not UTF-8": b"\xff" + good, "a list": b"[]",
    }  # fmt: skip
    for turn in range(count):
        name = list(forms)[turn % len(forms)]
        failures = _failures(stage)
        _put(file, forms[name])
        fault = Fault(row, f"JWK Set: {name}", time.monotonic())
        for number in range(EXPECTED_STORM):
            stage.load.offer(Special(_bad("kid_unknown"), _with_kid(stage, f"k{turn}-{number}")))
        fault.effective = stage.until(lambda failures=failures: _failures(stage) > failures, NOTICED_S)
        if turn % 3 == 2:
            _start_without_keys(stage)
        stage.note(fault)
        _rotate(stage, file, good, f"r{turn}")
        stage.until_all_decide(f"a JWK Set that was {name}")
        told(turn)
    _put(file, good)
    stage.notes.append(
        f"{count * EXPECTED_STORM:,} tokens with unknown kids; the set was a file, HTTP has tests of its own"
    )


def _failures(stage: Stage) -> int:
    return sum(event["event"] == "jwks_failed" for gate in stage.gates for event in gate.events())


def _put(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        fresh = file.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.rename(file)


def _start_without_keys(stage: Stage) -> None:
    """A gate that starts now has no key set at all: it holds its lanes, and accepts nothing."""
    (gate, *_) = [gate for gate in stage.gates if gate.lanes] or stage.gates
    gate.kill()
    before = len(gate.events())
    gate.start()

    def holds() -> bool:
        return any(event["event"] == "lane_held" and event["cause"] == "keys" for event in gate.events()[before:])

    if not stage.until(holds, NOTICED_S):
        stage.broken.append(f"fails_closed: {gate.name} started without any key set, and held no lane")
    time.sleep(2)
    stage.journals.update()
    jobs = sum(
        count
        for attempt in stage.journals.attempts
        if attempt.run == gate.run
        for where, count in attempt.counts.items()
        if where.startswith(f"{stage.prefix}jobs/")
    )
    if jobs:
        stage.broken.append(f"fails_closed: {gate.name} wrote {jobs} jobs without any key set")


def _rotate(stage: Stage, file: Path, good: bytes, kid: str) -> None:
    """The set is whole again and holds one more key: what that has signed is accepted as soon as gates have read it."""
    fresh = OtherIssuer(stage.prefix, kid)
    _put(file, json.dumps({"keys": json.loads(good)["keys"] + fresh.jwks()["keys"]}).encode())
    alive = [gate for gate in stage.gates if gate.alive]

    def read() -> bool:
        return all(
            any(event["event"] == "jwks_loaded" and kid in event["kids"] for event in gate.events()) for gate in alive
        )

    if not stage.until(read, NOTICED_S):
        stage.broken.append(f"keys_follow: not every gate had read the key {kid} within {NOTICED_S:.0f} s")
        return
    answers = stage.watcher.expect()
    for _ in range(ROTATED):
        value = json.dumps({"job": JOB, "token": fresh.token("many")}).encode()
        stage.load.offer(Special(Sent(None, "good"), value, taken=answers.add))
    if not stage.until(lambda: answers.all_answered(ROTATED), 60):  # the next set does not hold this key
        stage.broken.append(f"keys_follow: what {kid} had signed was not answered within 60 s")


def _with_kid(stage: Stage, kid: str) -> bytes:
    """A token that is good but for its kid, and so for its signature, which nobody can check."""
    header = {"alg": "ES256", "kid": kid, "typ": "trigger+jwt"}
    now_s = int(time.time())
    claims = {
        "iss": ISSUER, "aud": stage.issuer.audience, "sub": SUBJECT, "org_id": ORG, "jti": kid, "iat": now_s, "nbf": now_s,
        "exp": now_s + 600, "uses": "many",
    }  # fmt: skip
    parts = [json.dumps(part).encode() for part in (header, claims)] + [b"\x01" * 64]
    token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
    return json.dumps({"job": JOB, "token": token}).encode()
