"""L: a token's life from issue to revocation, and its time to live."""

from __future__ import annotations

import json
import time

from tests.rows.triggers import plain
from tests.rows.world import World
from tests.support.reader import read_topic

GRACE_S = 60
STALENESS_MS = 1_000  # a lane decides only while its view of revocations is no older
EDGE_S = 6  # tokens are made for every second so near to the end of the grace


def test_a_token_is_accepted_until_it_is_revoked_and_by_no_gate_afterwards(world: World) -> None:
    token = world.issue("rows/nightly", "--uses", "many")
    world.until("accepted", lambda: plain(token))
    (revoked,) = _lines(world.tollgate("token", "revoke", "--token-file", "-", "-o", "jsonl", stdin=token).stdout)
    (cut_ms,) = [r.timestamp_ms for r in read_topic(world.bootstrap, world.topic("revocations")).records
                 if r.offset == revoked["offset"]]  # fmt: skip

    # 1 Whatever is appended a second after the revocation is refused.
    deadline = time.monotonic() + 60
    while (outcome := world.present_one(plain(token))).verdict != "token_revoked":
        assert outcome.verdict == "accepted"
        assert outcome.job["trigger"]["appended_at_ms"] <= cut_ms + STALENESS_MS
        assert time.monotonic() < deadline
    # 2 So it is by a gate that starts later; nobody but Kafka tells it: no issuer runs.
    later = world.start_gate("later", workers=1).wait_ready()
    try:
        while not (taken := {e["lane"] for e in later.events() if e["event"] == "lane_taken"}):
            assert time.monotonic() < deadline + 60
            time.sleep(0.1)
        refused = world.present(*(plain(token)._replace(partition=lane) for lane in range(world.lanes)))
        assert taken < set(range(world.lanes)), "the others are still decided by the earlier gate"
        assert {each.verdict for each in refused} == {"token_revoked"}
        others = world.present(*(plain(world.ours.token())._replace(partition=lane) for lane in range(world.lanes)))
        assert {each.verdict for each in others} == {"accepted"}
    finally:
        later.stop()
        world.gates.remove(later)


def test_one_record_revokes_all_tokens_it_describes_and_no_other(world: World) -> None:
    job, now_s = "rows/bulk", int(time.time())
    world.apply("jobs", f'[jobs."{job}"]\n[jobs."{job}-2"]\n')
    world.until("accepted", lambda: plain(world.ours.token(f"{job}-2"), f"{job}-2"))

    def verdicts() -> list[str]:
        young = {"iat": now_s - 5, "nbf": now_s - 5}
        tokens = [
            plain(world.ours.token(job, sub="service:bulk-1", **young), job),
            plain(world.ours.token(job, sub="service:bulk-2", **young), job),
            plain(world.ours.token(job, sub="service:bulk-2", iat=now_s - 600, nbf=now_s - 600), job),
            plain(world.ours.token(job, sub="service:bul", **young), job),
            plain(world.ours.token([job, f"{job}-2"], "many", **young), f"{job}-2"),
            plain(world.ours.token(f"{job}-2", **young), f"{job}-2"),
        ]
        return [outcome.verdict for outcome in world.present(*tokens)]

    def revoked_is(*expected: bool) -> None:
        wanted = ["token_revoked" if each else "accepted" for each in expected]
        deadline = time.monotonic() + 60
        while (found := verdicts()) != wanted:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    revoked_is(False, False, False, False, False, False)
    # by prefix and time
    revoke = ("token", "revoke", "--issuer", world.ours.iss)
    world.tollgate(*revoke, "--subject-prefix", "service:bulk-", "--since", "5m")
    revoked_is(False, False, True, False, False, False)
    # by prefix; the later of two for one prefix counts
    world.tollgate(*revoke, "--subject-prefix", "service:bulk-")
    revoked_is(True, True, True, False, False, False)
    # by job: every token that grants it, for whatever it is shown
    world.tollgate(*revoke, "--job", job)
    revoked_is(True, True, True, True, True, False)


def test_a_token_of_five_seconds_is_accepted_in_its_time_and_expired_after_the_grace(world: World) -> None:
    now_s = int(time.time())
    young = world.ours.token(iat=now_s - 1, nbf=now_s - 1, exp=now_s + 4)
    old_exp_s = now_s - GRACE_S - 1
    old = world.ours.token(iat=old_exp_s - 5, nbf=old_exp_s - 5, exp=old_exp_s)
    assert [each.verdict for each in world.present(plain(young), plain(old))] == ["accepted", "token_expired"]


def test_the_last_moment_of_a_token_is_the_end_of_its_grace_by_the_brokers_clock(world: World) -> None:
    now_s = int(time.time())
    expiries = range(now_s - GRACE_S - EDGE_S, now_s - GRACE_S + EDGE_S)
    tokens = [world.ours.token(iat=exp - 5, nbf=exp - 5, exp=exp) for exp in expiries]
    outcomes = world.present(*map(plain, tokens))
    for exp, outcome in zip(expiries, outcomes, strict=True):
        if outcome.jobs:
            assert outcome.job["trigger"]["appended_at_ms"] <= (exp + GRACE_S) * 1000
            assert outcome.audit[0]["within_grace"] is True
        else:
            assert outcome.verdict == "token_expired"
            assert int(outcome.dead_letter.headers["tollgate-timestamp"]) > (exp + GRACE_S) * 1000
    assert outcomes[0].verdict == "token_expired"


def _lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]
