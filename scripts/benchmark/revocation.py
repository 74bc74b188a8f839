"""From a revocation's acknowledgement to the first refusal by the gate, while other tokens start jobs all the time.

A token starts a job and is taken back; from the acknowledgement on - the door's answer, or the broker's where there is
no door - it is presented again and again until a receipt refuses it. Measured is the time until that receipt can be
read, which holds a trigger's own way through the gate; and how late a trigger was sent that was still accepted.

Likewise, with fewer of them, where what is revoked is the prefix of its subject, or the object that it is bound to is
deleted from the registry.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from app import registry
from app.gate import limits
from app.gate.idempotency import home_lane
from app.gate.revocation import Selector, revocation_record
from app.stream.topics import Topic
from scripts.benchmark import traffic
from scripts.benchmark.deployment import Deployment, Gate, deployed, environment
from scripts.benchmark.door import Door, exchange
from scripts.benchmark.figures import GOALS, Figure
from scripts.benchmark.latency import LANES, Wire
from scripts.benchmark.run import Run
from scripts.benchmark.traffic import Request

PER_SECOND: Final = 20
LOAD_PER_SECOND: Final = 500
LOAD_REQUESTS: Final = 20_000  # in turn
AGAIN_EVERY_S: Final = 0.01
GIVE_UP_S: Final = 30.0
KID: Final = "client-1"
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
RARER: Final = 5  # one prefix or object for so many tokens of the other rows
DOOR: Final = "revoked-http"
OBJECTS: Final = "reports/bound-"

Revoke = Callable[[str], Awaitable[None]]


class Seen(NamedTuple):
    """Of one revocation, in milliseconds after its acknowledgement."""

    refused_ms: float  # the first refusal could be read
    accepted_ms: float  # the last trigger that was still accepted had been sent; 0: none was


class Way(NamedTuple):
    """A way to take a token back: in words, what does it, what the token says for it, and the code of the refusal."""

    how: str
    revoking: Callable[[Wire], AbstractAsyncContextManager[Revoke]] | None = None  # None: a door does it
    claims: Callable[[int], dict[str, Any]] = lambda _: {}
    code: str = "token_revoked"
    rarer: int = 1


def measure(run: Run, names: Sequence[str]) -> tuple[list[Figure], list[dict[str, Any]]]:
    figures: list[Figure] = []
    samples: list[dict[str, Any]] = []
    for name in names:
        way = _ways()[name]
        count = max(run.revocations // way.rarer, 2)
        with deployed(run.bootstrap, run.workdir, run.issuer, LANES) as deployment:
            if name == "revoked-object":
                _define(deployment, count)
            with Gate(deployment) as gate:
                gate.wait_ready()
                seen = _seen(run, deployment, way, count)
        refused, accepted = ([each[place] for each in seen] for place in (0, 1))
        cuts, late = (quantiles(values, n=100, method="inclusive") for values in (refused, accepted))
        what = f"{len(seen):,} revocations at {PER_SECOND}/s under {LOAD_PER_SECOND} triggers/s, by {way.how}"
        figures += [
            Figure(f"{what}: first refusal, p50", [cuts[49]], "ms"),
            Figure(f"{what}: first refusal, p99", [cuts[98]], "ms", GOALS["revoked p99"]),
            Figure(f"{what}: last acceptance, p99", [late[98]], "ms"),
        ]
        samples.append({"row": name, "refused_ms": [round(value, 3) for value in refused],
                        "accepted_ms": [round(value, 3) for value in accepted]})  # fmt: skip
        run.say(f"{name}: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f}, most {max(refused):.1f}")
    return figures, samples


def _ways() -> dict[str, Way]:
    bound = {"type": "job_trigger", "actions": ["106-Trigger"], "jobs": [traffic.JOB]}
    return {
        DOOR: Way("POST /oauth/revoke"),
        "revoked": Way("a record on the topic, no door", _by_record),
        "revoked-prefix": Way(
            "a record of its subject's prefix, no door", _by_prefix, lambda number: {"sub": f"{_prefix(number)}x"},
            rarer=RARER,
        ),
        "revoked-object": Way(
            "the deletion of the object that it is bound to", _by_deletion,
            lambda number: {
                "authorization_details": [bound | {"bound_to": {"object": f"job/{OBJECTS}{number:06}"}}]
            },
            "bound_object_gone", RARER,
        ),
    }  # fmt: skip


def _seen(run: Run, deployment: Deployment, way: Way, count: int) -> list[Seen]:
    tokens = run.issuer.mint_with([way.claims(number) for number in range(count)])
    if way.revoking is not None:
        return asyncio.run(_measured(run, deployment, tokens, way.code, way.revoking))
    client = _client_of(deployment)
    with Door(deployment, issues=True) as door:
        door.wait_for_line('"serve_started"')
        return asyncio.run(_measured(run, deployment, tokens, way.code, partial(_by_door, door.port, client)))


async def _measured(
    run: Run, deployment: Deployment, tokens: Sequence[str], code: str,
    revoking: Callable[[Wire], AbstractAsyncContextManager[Revoke]],
) -> list[Seen]:  # fmt: skip
    load = traffic.webhook(run.issuer, LOAD_REQUESTS)
    async with Wire(deployment) as wire, revoking(wire) as revoke:
        loading = asyncio.create_task(_load(wire, load))
        began_s = time.perf_counter()
        tasks: list[asyncio.Task[Seen]] = []
        for number, token in enumerate(tokens):
            await asyncio.sleep(max(began_s + number / PER_SECOND - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(_taken_back(wire, token, code, revoke)))
        seen = await asyncio.gather(*tasks)
        if loading.done():
            loading.result()
        loading.cancel()
        return seen


async def _load(wire: Wire, requests: Iterable[Request]) -> None:
    began_s = time.perf_counter()
    for number, request in enumerate(itertools.cycle(requests)):
        await asyncio.sleep(max(began_s + number / LOAD_PER_SECOND - time.perf_counter(), 0))
        await wire.send(request, home_lane(request.key, LANES))


async def _taken_back(wire: Wire, token: str, code: str, revoke: Revoke) -> Seen:
    """Start a job with it, take it back, and present it until it is refused."""
    before, _ = await _present(wire, token)
    if (await _answer(wire, before))[1] is not None:
        raise RuntimeError("a token was refused before it was taken back")
    await revoke(token)
    acknowledged_s = time.perf_counter()
    presented: list[tuple[bytes, float]] = []
    while not any(_refusal(wire, trigger_id) for trigger_id, _ in presented):
        if time.perf_counter() > acknowledged_s + GIVE_UP_S:
            raise TimeoutError(f"a token that was taken back was not refused within {GIVE_UP_S:.0f} s")
        presented.append(await _present(wire, token))
        await asyncio.sleep(AGAIN_EVERY_S)
    refused_s, accepted_s = [], [acknowledged_s]
    for trigger_id, sent_s in presented:
        answered_s, reason = await _answer(wire, trigger_id)
        if reason is None:
            accepted_s.append(sent_s)
        elif reason == code:
            refused_s.append(answered_s)
        else:
            raise RuntimeError(f"a token that was taken back was refused as {reason}")
    return Seen((min(refused_s) - acknowledged_s) * 1_000, (max(accepted_s) - acknowledged_s) * 1_000)


async def _present(wire: Wire, token: str) -> tuple[bytes, float]:
    """The trigger's id, and when it was sent."""
    key, sent_s = secrets.token_hex(8), time.perf_counter()
    placed = await (await wire.send(Request(key, traffic.value_of(token, key)), home_lane(key, LANES)))
    return b"%d-%d" % (placed.partition, placed.offset), sent_s


def _refusal(wire: Wire, trigger_id: bytes) -> str | None:
    answer = wire.answers.get(trigger_id)
    return None if answer is None else json.loads(answer[1])["reason"]


async def _answer(wire: Wire, trigger_id: bytes) -> tuple[float, str | None]:
    async with asyncio.timeout(GIVE_UP_S):
        while trigger_id not in wire.answers:  # noqa: ASYNC110 - the reader fills it
            await asyncio.sleep(0.002)
    return wire.answers[trigger_id][0], _refusal(wire, trigger_id)


# ── ways to take a token back ──


def _claims(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return claims


async def _write(wire: Wire, selector: Selector, value: str, until_s: int) -> None:
    """As `tollgate token revoke` writes it, with a producer that is there already."""
    key, record = revocation_record(
        traffic.ISSUER, selector, value, since_s=limits.NUMERIC_DATE_MAX_S, reason="bench", by="bench",
        keep_until_s=until_s,
    )  # fmt: skip
    await wire.producer.send_and_wait(wire.deployment.topic(Topic.REVOCATIONS), record, key=key, partition=0)


@asynccontextmanager
async def _by_record(wire: Wire) -> AsyncIterator[Revoke]:
    async def revoke(token: str) -> None:
        claims = _claims(token)
        await _write(wire, "jti", claims["jti"], claims["exp"])

    yield revoke


def _prefix(number: int) -> str:
    return f"service:of-{number:06}-"


@asynccontextmanager
async def _by_prefix(wire: Wire) -> AsyncIterator[Revoke]:
    async def revoke(token: str) -> None:
        claims = _claims(token)
        await _write(wire, "subject_prefix", claims["sub"][:-1], claims["exp"])

    yield revoke


@asynccontextmanager
async def _by_deletion(wire: Wire) -> AsyncIterator[Revoke]:
    """As `tollgate jobs remove` deletes it, in a transaction, with a producer that is there already."""
    one = asyncio.Lock()
    async with registry.only_writer(wire.deployment.settings) as (_, write):

        async def revoke(token: str) -> None:
            bound_to = _claims(token)["authorization_details"][0]["bound_to"]
            async with one:
                await write({bound_to["object"].encode(): None})

        yield revoke


@asynccontextmanager
async def _by_door(port: int, client: ec.EllipticCurvePrivateKey, _: Wire) -> AsyncIterator[Revoke]:
    """As the identity whose tokens they are, on one connection, one after another."""
    wire, one = await asyncio.open_connection("127.0.0.1", port), asyncio.Lock()

    async def revoke(token: str) -> None:
        now_s = int(time.time())
        claims = {"iss": traffic.SUBJECT, "sub": traffic.SUBJECT, "aud": traffic.ISSUER, "jti": secrets.token_hex(8),
                  "iat": now_s, "exp": now_s + 60}  # fmt: skip
        assertion = jwt.encode(claims, client, "ES256", headers={"kid": KID})
        form = {"token": token, "client_assertion": assertion, "client_assertion_type": ASSERTION_TYPE}
        body = urlencode(form).encode()
        head = (
            "POST /oauth/revoke HTTP/1.1\r\nhost: door\r\ncontent-type: application/x-www-form-urlencoded\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        async with one:
            await exchange(wire, head.encode() + body, b"200")

    try:
        yield revoke
    finally:
        wire[1].close()


def _define(deployment: Deployment, count: int) -> None:
    """Objects to bind tokens to."""
    file = deployment.directory / "objects.toml"
    file.write_text("".join(f'[jobs."{OBJECTS}{number:06}"]\n' for number in range(count)))
    definitions = registry.read_definitions(file, "jobs")
    asyncio.run(registry.apply(deployment.settings, definitions, dry_run=False))


def _client_of(deployment: Deployment) -> ec.EllipticCurvePrivateKey:
    """The identity that the tokens speak for, by a key of its own; as ops make one."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
    jwks, identities = deployment.directory / "client.json", deployment.directory / "identities.toml"
    jwks.write_text(json.dumps({"keys": [{"kid": KID, "alg": "ES256", "use": "sig"} | public]}))
    identities.write_text(f'[identities."{traffic.SUBJECT}"]\norg_id = "{traffic.ORG}"\n')
    _tollgate(deployment, "identities", "apply", str(identities))
    _tollgate(deployment, "identities", "rotate", traffic.SUBJECT, "--jwks", str(jwks))
    return private


def _tollgate(deployment: Deployment, *words: str) -> None:
    env = environment(deployment, TOLLGATE_ISSUER__ISSUER=traffic.ISSUER)
    command = [sys.executable, "-m", "app.cli.main", *words]
    done = subprocess.run(
        command, env=env, cwd=Path(deployment.directory), capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"tollgate {' '.join(words)}: {done.stderr}")
