"""What a door keeps of what was issued: the tokens that may still be out, by whose they are, and a flood's refusals."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from app.api import issuing
from app.api.issuing import Issuing, Refusals
from app.authority.decide import IssueRequest, unauthenticated
from app.authority.records import Issued, issue_denied
from tests.api.closed import unconnected


def record(jti: str, identity: str = "svc:ci", subject: str = "svc:ci", lives_s: int = 600) -> bytes:
    now_s = int(time.time())
    return msgspec.json.encode(
        Issued(
            now_s * 1000,
            identity,
            "c",
            ("r",),
            "http",
            "https://i",
            subject,
            "dev",
            "trigger",
            "once",
            jti,
            "k1",
            "f" * 32,
            ("reports/nightly",),
            now_s + lives_s,
        )
    )


def jtis(of: Issuing, name: str) -> set[str]:
    return {each.jti for each in of.live(name)}


async def test_live_tokens_are_found_by_whom_they_were_issued_to_and_for_whom_they_speak(tmp_path: Path) -> None:
    service = unconnected(tmp_path)
    assert service.issuing is not None
    kept = service.issuing
    for value in (record("a"), record("b", "svc:agent"), record("c", "svc:agent", "svc:agent"), record("d", lives_s=1)):
        kept._take(value)
    kept._take(issue_denied(
        unauthenticated(), IssueRequest("svc:x", "dev", None), "svc:x", "https://i", "http", 0, authenticated=False
    )[1])  # fmt: skip
    kept._take(b"{")
    assert (jtis(kept, "svc:ci"), jtis(kept, "svc:agent"), jtis(kept, "svc:x")) == ({"a", "b", "d"}, {"b", "c"}, set())
    for jti in ("a", "b", "c", "d"):
        kept._live[jti] = ended = msgspec.structs.replace(kept._live[jti], expires_at_s=0)
        for name in (ended.identity, ended.subject):
            kept._live_of[name][jti] = ended
    kept._swept_s = 0
    kept._take(record("e"))
    assert (set(kept._live), jtis(kept, "svc:ci"), set(kept._live_of)) == ({"e"}, {"e"}, {"svc:ci"})
    await service.cluster.stop()


def test_of_a_flood_of_refusals_few_are_recorded_and_how_many_were_not() -> None:
    refusals = Refusals()
    flood = [refusals.take(1000.0) for _ in range(500)]
    assert flood == [0] * issuing.REFUSALS_AT_ONCE + [None] * (500 - issuing.REFUSALS_AT_ONCE)
    assert refusals.take(1000.0 + issuing.REFUSAL_EVERY_S) == 480
    assert refusals.take(1000.0 + issuing.REFUSAL_EVERY_S) is None
    assert refusals.take(9000.0) == 1
    assert refusals.take(9000.0) == 0
