"""Rows of what strangers and issuers send: poison, sizes, revocations, broken key sets."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from confluent_kafka import Producer

from tests.campaign.load import Special
from tests.campaign.stage import ROOT, CampaignGate, Fault, Stage
from tests.support.invariants import Sent
from tests.support.issuer import ISSUER, JOB, ORG, SUBJECT

VECTORS = ROOT / "tests" / "vectors"
MIB = 1 << 20
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
RSS_GROWTH_MAX_MIB = 256
HONOURED_S = 1.0  # a revocation, after its record stands on the topic
LATER_S = 1.5
BURST = 50
EXPECTED_STORM = 2_000  # of unknown kids, for each broken form


# ── F15: poison ──


def poisons(stage: Stage) -> Iterator[tuple[Sent, bytes | None]]:
    """For ever: every vector once and again, between them bytes at random, each with the reason it must get."""
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
    values += [(_bad(None), path.read_bytes()) for path in parsing]  # valid JSON or not: none is a trigger
    values += [(_bad(None), json.dumps({"job": JOB, "token": jws}).encode()) for jws in shown]
    while True:
        yield from values
        for _ in range(len(values)):
            yield _bad(None), b"\xff" + stage.dice.randbytes(stage.dice.randint(0, 400))


def _bad(reason: str | None) -> Sent:
    return Sent(None, "rejected", reason)


def poison(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """A fifth of the stream is poison; what stands behind it is decided within a second, and memory stays bounded."""
    before = _peaks(stage)
    source = poisons(stage)
    done = 0
    while done < count:
        for _ in range(BURST):
            sent, value = next(source)
            stage.load.offer(Special(sent, value))
        done += BURST
        time.sleep(BURST / max(stage.load.rate / 4, 1))
        told(done)
    fault = Fault(row, "poison", time.monotonic(), effective=True)
    stage.until(lambda: not stage.load.offered, 60)
    stage.counts[row] = done
    stage.note(fault)
    _memory(stage, before)


# ── F16: sizes ──


def sizes(stage: Stage, row: str, count: int, told: Callable[[int], None]) -> None:
    """Everything from nothing to the largest record; batches that expand beyond all bounds."""
    before = _peaks(stage)
    largest = MIB - 1_000
    forms: tuple[Callable[[], Special], ...] = (
        lambda: Special(_bad(None), b"\xff" * stage.dice.randint(0, largest)),
        lambda: Special(_bad(None), b"{}", headers=[(f"h{n}", b"v") for n in range(1_000)]),
        lambda: Special(_bad(None), b"{}", headers=[("big", b"h" * (largest - 200))]),
        lambda: Special(_bad("payload_too_large"), _filled(stage, stage.dice.randint(600_000, largest - 2_000))),
        lambda: Special(Sent(None, "good"), _filled(stage, stage.dice.randint(0, 400_000))),
    )
    bombs = max(count // 20, 1)
    for number in range(count - bombs):
        stage.load.offer(Special(*forms[number % len(forms)]()))
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
    for number in range(bombs):
        uid = stage.load.announce(_bad("batch_too_large"))
        producer.produce(
            f"{stage.prefix}triggers", bomb, uid, partition=stage.dice.randrange(stage.lanes),
            on_delivery=lambda error, _, uid=uid: stage.load.told(uid, error),
        )  # fmt: skip
        producer.flush(30)
        told(count - bombs + number)
    stage.counts[row] = count
    stage.note(Fault(row, "sizes and bombs", time.monotonic(), effective=True))
    stage.until_all_decide("the bombs")
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
    """Tokens that were good, each revoked: whatever is appended more than a second later is refused."""
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
        time.sleep(LATER_S)
        for number, token in enumerate(burst):
            value = json.dumps({"job": JOB, "token": token, "idempotency_key": f"revoke-{done + number}-late"}).encode()
            stage.load.offer(Special(_bad("token_revoked"), value))
        done += len(burst)
        stage.counts[row] = done
        told(done)
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
        content = forms[name]
        fresh = file.with_suffix(".new")
        if content is None:
            file.unlink()
        else:
            fresh.write_bytes(content)
            fresh.rename(file)
        at = time.monotonic()
        for number in range(EXPECTED_STORM):
            stage.load.offer(Special(_bad("kid_unknown"), _with_kid(stage, f"k{turn}-{number}")))
        time.sleep(4)
        stage.until(lambda: not stage.load.offered, 30)
        # A gate that starts now has no key set at all: it holds, and decides rightly when the set is back.
        if turn % 3 == 2:
            ready = [gate for gate in stage.gates if gate.lanes]
            if ready:
                ready[0].kill()
                ready[0].start()
                time.sleep(4)
        fresh.write_bytes(good)
        fresh.rename(file)
        failed = [event for gate in stage.gates for event in gate.events() if event["event"] == "jwks_failed"]
        stage.note(Fault(row, f"JWK Set: {name}", at, effective=len(failed) > turn))
        stage.until_all_decide(f"a JWK Set that was {name}")
        told(turn)
    holds = [
        event
        for gate in stage.gates
        for event in gate.events()
        if event["event"] == "lane_held" and event["cause"] == "keys"
    ]
    stage.notes.append(f"{len(holds)} lanes held for want of keys; {count * EXPECTED_STORM:,} tokens with unknown kids")


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
