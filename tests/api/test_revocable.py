"""What a client may take back: every token that a gate may yet take, honoured now or not, and whatever may be one."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.api.problems import Problem
from app.api.revocable import Revocable, revocable
from app.authority.identities import Identity
from app.config import Issuer, Settings
from app.gate.decide import Memo
from app.gate.identities import Identities
from app.gate.reference import HASH_CLAIM, handle_digest
from app.gate.revocation import revocation_record
from tests.api.test_caller import HANDLE, live, tables
from tests.support.tokens import ISS, JTI, token

RECORD = SimpleNamespace(issuer=ISS, org_id="acme", jti=JTI, subject="service:ci", identity="svc:agent")


async def asked(made: Any, text: str, *, ours: str = ISS, record: Any = None, published_until_s: float = 0) -> Any:
    """By a door of an issuer, of what it has issued and of what its key files say of the token's key."""

    async def until_s(_kid: str) -> float:
        return published_until_s

    service: Any = SimpleNamespace(tables=made, settings=Settings(issuer=Issuer(issuer=ours)))
    issuing: Any = SimpleNamespace(of={JTI: record}.get, published_until_s=until_s)
    return await revocable(service, issuing, text)


async def test_a_token_whose_identity_is_disabled_can_be_taken_back() -> None:
    made, identities = tables(), Identities()
    disabled = Identity("service:ci", 1, "service", ISS, "acme", disabled=True)
    identities.apply("service:ci", msgspec.json.encode(disabled))
    made._world = msgspec.structs.replace(made._world, disabled=identities.disabled(), memo=Memo())
    assert await asked(made, token(claims=live())) == Revocable(ISS, "acme", JTI, frozenset({"service:ci"}))


async def test_a_token_whose_time_has_not_come_can_be_taken_back() -> None:
    now_s = int(time.time())
    early = token(claims=live(nbf=now_s + 600, exp=now_s + 900))
    assert (await asked(tables(), early, record=RECORD)).owners == {"service:ci", "svc:agent"}


async def test_what_was_sent_in_its_time_and_waits_to_be_judged_can_be_taken_back() -> None:
    gate, now_s = Settings().gate, int(time.time())
    longest_s = gate.grace_s + gate.queue_age_cap_s
    for ago_s, there in ((gate.grace_s + 60, True), (longest_s - 60, True), (longest_s + 1, False)):
        expired = token(claims={"iat": now_s - 86_000, "nbf": now_s - 86_000, "exp": now_s - ago_s})
        assert (await asked(tables(), expired) is not None) is there


async def test_what_no_gate_will_take_needs_no_revocation() -> None:
    for dead in (token(claims=live(exp=1_700_000_000)), "x", token(claims=live())[:-4] + "AAAA"):
        assert await asked(tables(), dead) is None


# ── of a key that is not known here ──


def lacking(*, read_ago_s: float = -60, grant: str | None = None) -> Any:
    """Tables whose issuer's set was read so long ago, and lacks the key k9; below zero: since the request came."""
    made = tables(grant)
    made._keys = SimpleNamespace(  # type: ignore[assignment]
        version=1, ring=made._keys.ring, may_fetch=lambda _: False, read_at_s=lambda _: time.monotonic() - read_ago_s
    )
    return made


def of_k9(**claims: Any) -> str:
    return token({"kid": "k9"}, live(**claims))


async def refused(made: Any, text: str, **known: Any) -> tuple[str, int]:
    with pytest.raises(Problem) as raised:
        await asked(made, text, **known)
    assert raised.value.headers["Retry-After"]
    return raised.value.code, raised.value.status


async def test_a_token_of_nobodys_key_needs_no_revocation() -> None:
    assert await asked(lacking(), of_k9()) is None


async def test_a_token_whose_key_may_be_newer_than_what_was_read_is_asked_for_again() -> None:
    assert await refused(lacking(read_ago_s=20), of_k9()) == ("not_ready", 503)


async def test_a_token_whose_key_a_gate_may_have_kept_is_asked_for_again() -> None:
    kept_s, now_s = Settings().gate.jwks_max_stale_s, time.time()
    for until_s in (math.inf, now_s, now_s - kept_s + 60):
        assert await refused(lacking(), of_k9(), published_until_s=until_s) == ("not_ready", 503)
    assert await asked(lacking(), of_k9(), published_until_s=now_s - kept_s - 1) is None


async def test_a_token_on_record_can_be_taken_back_by_whose_it_is_whatever_its_key() -> None:
    mine = Revocable(ISS, "acme", JTI, frozenset({"service:ci", "svc:agent"}))
    assert await asked(lacking(read_ago_s=20), of_k9(), record=RECORD, published_until_s=math.inf) == mine
    # Who says in a token of no key that another's jti is its own gets nowhere.
    assert await asked(lacking(read_ago_s=20), of_k9(sub="svc:thief"), record=RECORD) == mine


async def test_a_token_of_another_issuer_is_nobodys_here() -> None:
    assert await asked(lacking(), of_k9(), ours="https://ours.example") == Revocable(ISS, "acme", JTI, frozenset())


async def test_what_is_over_by_its_own_words_needs_no_key() -> None:
    stale = lacking(read_ago_s=20)
    for dead in (of_k9(exp=1_700_000_000), of_k9(aud="elsewhere"), of_k9(jti="")):
        assert await asked(stale, dead, published_until_s=math.inf) is None
    key, value = revocation_record(ISS, "jti", JTI, since_s=9_999_999_999, reason="", by="x", keep_until_s=0)
    stale._revocations.apply(key, value)
    assert await asked(stale, of_k9(), published_until_s=math.inf) is None


async def test_a_handle_goes_the_way_of_what_it_stands_for() -> None:
    claims = live(**{HASH_CLAIM: handle_digest(HANDLE).hex()})
    granted = token({"typ": "grant+jwt", "kid": "k9"}, claims)
    assert await refused(lacking(read_ago_s=20, grant=granted), HANDLE) == ("not_ready", 503)
    assert await asked(lacking(read_ago_s=20, grant=granted), HANDLE, record=RECORD) is not None
    assert await asked(lacking(grant=granted), HANDLE) is None
