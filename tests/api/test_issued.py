"""What a door keeps of what was issued: the tokens that may still be out, by whose they are, and a flood's refusals."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from app.api import issuing
from app.api import used as used_module
from app.api.caller import identify
from app.api.clients import Client
from app.api.issuing import Issuing, Refusals, Wanted
from app.api.pace import BURST_S
from app.api.problems import Problem
from app.api.service import Service
from app.api.used import Used
from app.authority.decide import Denied, IssueRequest, unauthenticated
from app.authority.identities import ClientSecret, Identity, keep_secret, secret_text
from app.authority.records import Issued, issue_denied
from app.authority.roles import Allow, Role
from app.config import Settings
from app.gate import limits
from app.gate.claims import BoundTo, Uses
from app.gate.idempotency import jti_identity, jti_scope, pack
from app.gate.revocation import revocation_record
from app.gate.token import USER_CLASSES
from app.issuer.keystore import LOCK_FILE, STATE_FILE, Keystore
from app.issuer.mint import Minted
from app.stream.log import Watermarks
from app.stream.topics import Topic
from tests.api.closed import listening, unconnected
from tests.api.test_caller import of, tables
from tests.support.pure_world import WORLD
from tests.support.tokens import ISS


def record(
    jti: str, identity: str = "svc:ci", subject: str = "svc:ci", lives_s: int = 600, *, uses: Uses = "once",
    issuer: str = "https://i",
) -> bytes:  # fmt: skip
    now_s = int(time.time())
    return msgspec.json.encode(
        Issued(
            now_s * 1000,
            identity,
            "c",
            ("r",),
            "http",
            issuer,
            subject,
            "dev",
            "trigger",
            uses,
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


IDENTITY = Identity(
    "svc:ci", 1, "service", Settings().issuer.issuer, "dev", ("r",),
    credentials=(ClientSecret("c", bytes(16), bytes(32)), ClientSecret("d", bytes(16), bytes(32))),
)  # fmt: skip
CLIENT = Client(IDENTITY, "c")
WANTED = Wanted(("reports/nightly",), "once", 60)


def with_keys(
    directory: Path, monkeypatch: pytest.MonkeyPatch, service: Service | None = None
) -> tuple[Issuing, Path, list[Any]]:
    """A door that may issue, its keys, and what it would have written to Kafka."""
    service, written = service or unconnected(directory), list[Any]()
    made = service.issuing
    assert made is not None
    monkeypatch.setattr(service.tables, "complaint", lambda: None)

    async def append(topic: Topic, _records: Any) -> None:
        written.append(topic)

    monkeypatch.setattr(made._issuer, "_append", append)
    monkeypatch.setattr(made, "_append", append)
    made.rights.identities["svc:ci"] = IDENTITY
    made.rights.roles["r"] = Role("r", 1, (Allow(("reports/*",), max_lifetime_s=600),))
    made._issuer._keys = keys = Keystore(directory / "keys", directory / "jwks.json")
    keys.generate("ES256", int(time.time()))
    return made, directory / "keys", written


async def test_what_is_wrong_with_the_keys_is_for_now_and_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, keys, written = with_keys(tmp_path, monkeypatch)
    assert isinstance(await made.issue(CLIENT, WANTED), Minted)
    state = (keys / STATE_FILE).read_bytes()
    for spoil in (lambda at: at.write_bytes(b"{"), lambda at: at.mkdir()):
        (keys / STATE_FILE).unlink()
        spoil(keys / STATE_FILE)
        with pytest.raises(Problem) as refused:
            await made.issue(CLIENT, WANTED)
        assert (refused.value.status, refused.value.code) == (503, "keys_unavailable")
        assert refused.value.headers["Retry-After"]
    (keys / STATE_FILE).rmdir()
    (keys / STATE_FILE).write_bytes(state)
    (keys / STATE_FILE).chmod(0o600)
    assert isinstance(await made.issue(CLIENT, WANTED), Minted)
    assert len(written) == 2


async def test_a_door_answers_others_while_it_waits_for_the_lock_of_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, keys, _ = with_keys(tmp_path, monkeypatch)
    with (keys / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = asyncio.create_task(made.issue(CLIENT, WANTED))
        await asyncio.wait({asked}, timeout=0.3)
        assert not asked.done()
    assert isinstance(await asked, Minted)


async def test_a_view_that_is_behind_issues_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, written = with_keys(tmp_path, monkeypatch)
    monkeypatch.setattr(made._tables, "complaint", lambda: "registry was last confirmed 9.0 s ago")
    with pytest.raises(Problem) as refused:
        await made.issue(CLIENT, WANTED)
    assert (refused.value.code, written) == ("not_ready", [])


def test_a_token_is_bound_to_jobs_and_trust_rules_and_asks_for_nothing_else() -> None:
    asked: list[str] = []

    def birth_id_of(key: str) -> str:
        asked.append(key)
        return "born"

    for key in ("job/reports/nightly", "trust/https://i"):
        bound = WANTED._replace(bind_to=key).bound(birth_id_of)
        assert isinstance(bound, Wanted)
        assert bound.bound_to == BoundTo(key, "born")
    for key in ("identity/svc:ci", "role/r", "rule/freeze", "platform/hpc", "deployment", "jobs", "device/1", ""):
        refused = WANTED._replace(bind_to=key).bound(birth_id_of)
        assert isinstance(refused, Denied)
        assert refused.code == "bound_object_gone"
    assert asked == ["job/reports/nightly", "trust/https://i"]


# ── how fast ──


async def test_one_identity_has_no_more_written_than_it_may_and_no_other_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, written = with_keys(tmp_path, monkeypatch, unconnected(tmp_path, client_requests_per_s=1))
    other = made.rights.identities["svc:other"] = msgspec.structs.replace(IDENTITY, name="svc:other")
    refused = WANTED._replace(jobs=("payroll/run",))
    ways: list[Any] = [
        lambda client: made.issue(client, WANTED), lambda client: made.issue(client, refused),
        lambda client: made.refused(client, "token_revoked", "it was handed over"),
        lambda client: made.revoke("subject", client.identity.name, client.identity.name, ""),
        lambda client: made.revoke("jti", "a", client.identity.name, ""),
    ]  # fmt: skip
    for way in ways:
        await way(CLIENT)
    assert len(written) == BURST_S == len(ways)
    for way in ways:
        with pytest.raises(Problem) as raised:
            await way(CLIENT)
        assert (raised.value.status, raised.value.code, raised.value.headers["Retry-After"]) == (
            429, "client_too_fast", "1",
        )  # fmt: skip
    assert len(written) == len(ways)
    assert isinstance(await made.issue(Client(other, "c"), WANTED), Minted)
    made._pace._left = {name: (left, at_s - 1) for name, (left, at_s) in made._pace._left.items()}
    assert isinstance(await made.issue(CLIENT, WANTED), Minted)


async def test_one_identity_has_no_more_tokens_out_than_it_may_until_they_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, written = with_keys(tmp_path, monkeypatch, unconnected(tmp_path, client_tokens_max=2))
    for value in (record("a"), record("a"), record("b", "svc:other", "svc:ci")):  # one of them to it
        made._take(value)
    assert isinstance(await made.issue(CLIENT, WANTED), Minted)
    made._take(record("c"))
    with pytest.raises(Problem) as raised:
        await made.issue(CLIENT, WANTED)
    assert (raised.value.status, raised.value.code) == (429, "client_has_too_many")
    assert raised.value.headers["Retry-After"] == "60", "nothing is forgotten before"
    assert len(written) == 2, "and the record of the refusal"
    made._live = {jti: msgspec.structs.replace(each, expires_at_s=0) for jti, each in made._live.items()}
    made._swept_s = 0
    assert isinstance(await made.issue(CLIENT, WANTED), Minted)
    assert not made._issued_to


async def test_tokens_on_their_way_to_the_record_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, _ = with_keys(tmp_path, monkeypatch, unconnected(tmp_path, client_tokens_max=2))
    written: list[Any] = []

    async def send(topic: str, *_: Any, **__: Any) -> asyncio.Future[None]:
        written.append(topic)
        return asyncio.ensure_future(asyncio.sleep(0))

    monkeypatch.setattr(made._issuer, "_append", Issuing._append.__get__(made))
    monkeypatch.setattr(made._producer, "current", SimpleNamespace(send=send))
    results = await asyncio.gather(*(made.issue(CLIENT, WANTED) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(each, Minted) for each in results) == 2
    assert {each.code for each in results if isinstance(each, Problem)} == {"client_has_too_many"}
    assert len(written) == 20
    assert not made._under_way
    with pytest.raises(Problem, match="client_has_too_many"):
        await made.issue(CLIENT, WANTED)  # though nothing of it was read back yet


async def test_a_revocation_that_is_in_force_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, written = with_keys(tmp_path, monkeypatch)
    ours, by = made._settings.issuer.issuer, "svc:ci"
    first = await made.revoke("jti", "a", by, "lost")
    assert first["since_s"] is None  # one token is revoked whole
    made._tables.world.revocations.apply(*revocation_record(
        ours, "jti", "a", since_s=limits.NUMERIC_DATE_MAX_S, **{n: first[n] for n in ("reason", "by", "keep_until_s")}
    ))  # fmt: skip
    assert await made.revoke("jti", "a", by, "again") == first
    assert len(written) == 1
    await made.revoke("jti", "b", by, "")
    # Of a subject it ends what was issued since, too.
    made._tables.world.revocations.apply(
        *revocation_record(ours, "subject", by, since_s=int(time.time()), reason="", by=by, keep_until_s=0)
    )
    assert (await made.revoke("subject", by, by, ""))["since_s"] > time.time()
    assert len(written) == 3


# ── who is nobody any more ──


async def removed(made: Issuing) -> None:
    made.rights.apply(b"identity/svc:ci", None)


async def disabled(made: Issuing) -> None:
    made.rights.identities["svc:ci"] = msgspec.structs.replace(IDENTITY, disabled=True)


async def rotated(made: Issuing) -> None:
    left = (IDENTITY.credentials[1], ClientSecret("e", bytes(16), bytes(32)))
    made.rights.identities["svc:ci"] = msgspec.structs.replace(IDENTITY, credentials=left)


async def over(made: Issuing) -> None:
    ended = msgspec.structs.replace(IDENTITY.credentials[0], not_after_s=int(time.time()))
    made.rights.identities["svc:ci"] = msgspec.structs.replace(IDENTITY, credentials=(ended,))


async def less(made: Issuing) -> None:
    made.rights.roles["r"] = Role("r", 1, (Allow(("payroll/*",), max_lifetime_s=600),))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(removed, "client_unauthenticated"), (disabled, "identity_disabled"), (rotated, "client_unauthenticated"),
     (over, "client_unauthenticated"), (less, "job_not_granted")],
)  # fmt: skip
@pytest.mark.parametrize("when", ["before", "while it is minted", "while it is written"])
async def test_who_is_nobody_any_more_is_handed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, reason: str, when: str
) -> None:
    made, keys, written = with_keys(tmp_path, monkeypatch)
    if when == "before":
        await change(made)
        refused = await made.issue(CLIENT, WANTED)
        records = 1
    elif when == "while it is minted":
        with (keys / LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            asked = asyncio.create_task(made.issue(CLIENT, WANTED))
            await asyncio.wait({asked}, timeout=0.3)
            await change(made)
        refused, records = await asked, 1
    else:
        append = made._issuer._append

        async def slowly(topic: Topic, some: Any) -> None:
            await append(topic, some)
            await change(made)

        monkeypatch.setattr(made._issuer, "_append", slowly)
        refused, records = await made.issue(CLIENT, WANTED), 2
    assert isinstance(refused, Denied)
    assert (refused.code, len(written)) == (reason, records)


async def test_a_login_that_is_taken_back_gets_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, _ = with_keys(tmp_path, monkeypatch)
    made._tables = seen = tables(rule=msgspec.structs.replace(WORLD.rules[ISS], classes=("user",)))
    login = (await identify(seen, of("user+jwt"), USER_CLASSES)).claims
    client = Client(IDENTITY, login.jti, login)
    assert isinstance(await made.issue(client, WANTED), Minted)
    seen._revocations.apply(
        *revocation_record(ISS, "jti", login.jti, since_s=9_999_999_999, reason="", by="x", keep_until_s=0)
    )
    seen._rebuild()
    refused = await made.issue(client, WANTED)
    assert isinstance(refused, Denied)
    assert refused.code == "token_revoked"


@pytest.mark.parametrize("change", [removed, rotated])
async def test_who_holds_back_the_end_of_a_request_is_judged_as_it_is_at_that_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    service = unconnected(tmp_path)
    made, _, _ = with_keys(tmp_path, monkeypatch, service)
    text = secret_text("00" * 8, bytes(32))
    made.rights.identities["svc:ci"] = msgspec.structs.replace(
        IDENTITY, credentials=(keep_secret(text, bytes(16), 0), *IDENTITY.credentials)
    )
    monkeypatch.setattr(service.clients, "complaint", lambda: None)
    body = msgspec.json.encode({"jobs": ["reports/nightly"], "lifetime_s": 60})
    proof = base64.b64encode(f"svc:ci:{text}".encode()).decode()
    head = (
        f"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {proof}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with listening(service) as url:
        host, port = url.removeprefix("http://").split(":")
        for held_back in (False, True):
            came, sent = await asyncio.open_connection(host, int(port))
            sent.write(head.encode() + body[:-1])
            await sent.drain()
            if held_back:
                await asyncio.sleep(0.3)
                await change(made)
            sent.write(body[-1:])
            status = (await came.read()).split(b" ", 2)[1]
            sent.close()
            assert status == (b"401" if held_back else b"201")


class Table:
    """Two lanes of a changelog in which these tokens are used, one a lane, behind so many other entries."""

    def __init__(self, jtis: list[str], others: int) -> None:
        scope = jti_scope("https://i")
        digests = [jti_identity(scope, jti)[:8] for jti in (*["x"] * others, *jtis)]
        entry = [pack(bytes(16), bytes(16), digest, 0, 0, 0, 0) for digest in digests]
        self._lanes = [[*entry[:others], each] for each in entry[others:]]
        self.read_from: list[int] = []

    async def first_since(self, partition: tuple[str, int], _since_ms: int) -> tuple[int, int] | None:
        return (0, 0) if partition[1] < len(self._lanes) else None

    async def watermarks(self, partition: tuple[str, int]) -> Watermarks:
        return Watermarks(0, len(self._lanes[partition[1]]))

    async def read(self, partition: tuple[str, int], start: int, end: int) -> AsyncIterator[tuple[list[Any], int]]:
        self.read_from.append(partition[1])
        entries = self._lanes[partition[1]][start:end]
        yield [SimpleNamespace(value=value) for value in (None, *entries)], end


async def used(table: Table, records: list[Issued], lanes: int = 4) -> set[str]:
    return await Used(table, "idempotency", lanes, 60).among(records, "svc:ci")  # type: ignore[arg-type]


def one_shot(jti: str, **changed: Any) -> Issued:
    return msgspec.structs.replace(msgspec.json.decode(record(jti), type=Issued), **changed)


async def test_used_ones_are_looked_for_in_what_was_decided_since_and_no_further_than_is_cheap() -> None:
    asked = [one_shot("a"), one_shot("b"), one_shot("c"), one_shot("d", uses="many")]
    assert await used(Table(["a", "d"], 10), asked) == {"a"}
    much = Table(["a", "b"], used_module.LOOK_MAX // 2)
    assert await used(much, asked) == set()
    assert much.read_from == []


async def test_what_was_found_used_stays_so_and_is_not_looked_for_again() -> None:
    table = Table(["a", "b"], 10)
    looking = Used(table, "idempotency", 4, 60)  # type: ignore[arg-type]
    assert await looking.among([one_shot("a"), one_shot("b")], "svc:ci") == {"a", "b"}
    assert await looking.among([one_shot("a"), one_shot("b")], "svc:ci") == {"a", "b"}
    assert table.read_from == [0, 1]


async def test_a_table_that_cannot_be_read_hides_no_token() -> None:
    table = Table(["a"], 1)
    table._lanes[0][0] = b"of a later version"
    assert await used(table, [one_shot("a")]) == set()
