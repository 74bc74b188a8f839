"""JWK Sets of the trusted issuers, from files or over HTTPS, followed and kept as the ring that `gate.token` asks.

What fails here never widens trust: a set that cannot be read leaves the last good one in use until that is too old,
then the issuer has no keys and its lanes hold. Only the operators' trust rules say where a set is; nothing in a token
makes a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from app.config import JWT_SECRET, ConfigError, Settings, file_that_says
from app.gate import limits
from app.gate.keyset import HS256, JWKSInvalid, KeyRing, KeySet, VerificationKey, dev_key
from app.telemetry import JWKS_AGE, JWKS_FETCHES, Event, log
from app.tls import verifying

if TYPE_CHECKING:
    import httpx

_CAFILE: Final = "gate.jwks_cafile"
FILE_POLL_S: Final = 0.5
FETCH_TIMEOUT_S: Final = 5.0
WANT_TIMEOUT_S: Final = 1.0  # a trigger with an unknown kid is held no longer
RETRY_MIN_S: Final = 1.0
START_TIMEOUT_S: Final = FETCH_TIMEOUT_S + 1.0


class Rule(Protocol):
    """What of a trust rule matters here."""

    @property
    def jwks(self) -> str | dict[str, Any]: ...
    @property
    def algorithms(self) -> tuple[str, ...]: ...


class JWKSUnavailable(Exception):  # noqa: N818 - a state of the world
    """The set could not be read; the message is one sentence."""


class _Where(NamedTuple):
    """All that decides what a set is read from and how; another value is another source."""

    jwks: str  # an address, a path, or the set itself as JSON
    algorithms: tuple[str, ...]

    @classmethod
    def of(cls, rule: Rule) -> _Where:
        jwks = rule.jwks if isinstance(rule.jwks, str) else msgspec.json.encode(rule.jwks).decode()
        return cls(jwks, tuple(rule.algorithms))

    @property
    def is_the_set(self) -> bool:
        return self.jwks.startswith("{")


@dataclass(slots=True)
class _Source:
    """One issuer's set: where it is, what was last read, and when it is read next. Times are monotonic seconds."""

    issuer: str
    where: _Where
    keys: KeySet | None = None
    digest: bytes = b""  # of the bytes that `keys` were read from
    confirmed_at_s: float = 0.0
    read_at_s: float = float("-inf")  # when the last read that went well began
    next_fetch_at_s: float = 0.0
    next_want_at_s: float = 0.0
    want_began_at_s: float = 0.0
    retry_s: float = RETRY_MIN_S
    failure: str | None = None
    signature: tuple[int, ...] | None = None
    fetching: asyncio.Task[None] | None = None
    wanted: asyncio.Task[None] | None = None
    loop: asyncio.Task[None] | None = None
    tried: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_file(self) -> bool:
        return not self.where.jwks.startswith(("https://", "http://"))


class JwksFollower:
    """Keeps `ring` current for the trust rules it was last told to follow. `version` grows with every change of it."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError when the development secret is configured where it must not be."""
        gate = settings.gate
        self._refresh_s = gate.jwks_refresh_s
        self._floor_s = gate.jwks_refetch_floor_s
        self._max_stale_s = gate.jwks_max_stale_s
        self._cafile = gate.jwks_cafile
        if self._cafile is not None:
            verifying(self._cafile, _CAFILE)  # a wrong setting stops the start, not the first fetch
        secret = load_dev_secret(settings)
        self._dev_key: VerificationKey | None = None if secret is None else dev_key(secret)
        self._sources: dict[str, _Source] = {}
        self._client: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()
        self._started = False
        self.ring: KeyRing = {}
        self.version = 0

    # ── what the lanes ask ──

    def follow(self, rules: Mapping[str, Rule]) -> None:
        """Trust exactly these issuers from now on. Cheap when nothing changed."""
        wanted = {issuer: _Where.of(rule) for issuer, rule in rules.items()}
        gone = [issuer for issuer, source in self._sources.items() if wanted.get(issuer) != source.where]
        for issuer in gone:
            _cancel(self._sources.pop(issuer))
        new = [_Source(issuer, where) for issuer, where in wanted.items() if issuer not in self._sources]
        for source in new:
            self._sources[source.issuer] = source
            if set(source.where.algorithms) <= {HS256}:
                source.keys = KeySet({}, frozenset())  # nothing to read
            elif source.where.is_the_set:
                source.keys = KeySet.from_jwks(source.where.jwks.encode(), source.where.algorithms)
            elif self._started:
                self._begin(source)
        if gone or new:
            self._publish()

    def may_fetch(self, issuer: str) -> bool:
        """Whether waiting for an unknown kid can help now: a fetch is under way, or the interval lets one begin."""
        source = self._sources.get(issuer)
        if source is None or source.loop is None:
            return False
        now_s = time.monotonic()
        if source.wanted is not None:  # a slow one is not waited for again and again
            return now_s < source.want_began_at_s + WANT_TIMEOUT_S
        return now_s >= source.next_want_at_s

    def read_at_s(self, issuer: str) -> float:
        """As of when (monotonic) the issuer's keys here were all that it had published."""
        source = self._sources.get(issuer)
        if source is None:
            return float("-inf")
        return float("inf") if source.where.is_the_set else source.read_at_s

    async def want(self, issuer: str, kid: str | None) -> None:
        """Read the issuer's set again because a token names a kid it lacks. Returns within a second.

        However many unknown kids strangers send, there is one read per issuer and interval, and all wait for that one.
        """
        source = self._sources.get(issuer)
        if source is None or source.loop is None or (source.keys is not None and kid in source.keys.keys):
            return
        if source.wanted is None:
            now_s = time.monotonic()
            if now_s < source.next_want_at_s:
                return
            source.want_began_at_s = now_s
            # A file costs no one anything to look at again; a server does.
            source.next_want_at_s = now_s + (min(FILE_POLL_S, self._floor_s) if source.is_file else self._floor_s)
            source.wanted = asyncio.create_task(self._fetch_alone(source), name=f"jwks-want-{issuer}")
            source.wanted.add_done_callback(lambda _: setattr(source, "wanted", None))
        await asyncio.wait({source.wanted}, timeout=WANT_TIMEOUT_S)

    async def start(self) -> None:
        """Begin to follow; returns when every set has been read or has failed once."""
        self._started = True
        if self._dev_key is not None:
            log.warning(
                Event.INSECURE_HS256,
                why="tokens signed with a shared development secret are accepted: never do this in production",
            )
        sources = [source for source in self._sources.values() if source.keys is None]
        for source in sources:
            self._begin(source)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT_S):
                for source in sources:
                    await source.tried.wait()

    async def stop(self) -> None:
        self._started = False
        tasks = [task for source in self._sources.values() for task in _cancel(source)]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # ── one source ──

    def _begin(self, source: _Source) -> None:
        source.confirmed_at_s = time.monotonic()
        source.loop = asyncio.create_task(self._follow_source(source), name=f"jwks-{source.issuer}")

    async def _follow_source(self, source: _Source) -> None:
        tick_s = min(FILE_POLL_S, self._refresh_s)
        while True:
            if source.is_file or time.monotonic() >= source.next_fetch_at_s:
                await self._fetch_alone(source)
                source.tried.set()
            age_s = time.monotonic() - source.confirmed_at_s
            JWKS_AGE.labels(source.issuer).set(age_s)
            if source.keys is not None and age_s > self._max_stale_s:
                log.error(
                    Event.JWKS_FAILED, issuer=source.issuer, holding=True,
                    why=f"the last good set is {age_s:.0f} s old, the limit is {self._max_stale_s:.0f} s",
                )  # fmt: skip
                source.keys, source.digest = None, b""
                self._publish()
            await asyncio.sleep(tick_s)

    async def _fetch_alone(self, source: _Source) -> None:
        """Single flight: whoever wants the set while it is being read waits for that read."""
        if source.fetching is None:
            source.fetching = asyncio.create_task(self._fetch(source), name=f"jwks-fetch-{source.issuer}")
            source.fetching.add_done_callback(lambda _: setattr(source, "fetching", None))
        await asyncio.shield(source.fetching)

    async def _fetch(self, source: _Source) -> None:
        """Read the set once. Never raises: what is wrong is logged, and the last good set stays."""
        began_at_s = time.monotonic()
        try:
            if source.is_file:
                await self._read_file(source)
            else:
                self._take(source, await self._read_https(source.where.jwks))
        except (JWKSUnavailable, JWKSInvalid) as error:
            self._failed(source, str(error))
        except Exception as error:  # an error of ours must not end the following
            self._failed(source, f"reading the set failed: {type(error).__name__}")
        else:
            source.confirmed_at_s, source.read_at_s = time.monotonic(), began_at_s
            source.failure, source.retry_s = None, RETRY_MIN_S
            source.next_fetch_at_s = source.confirmed_at_s + self._refresh_s

    def _take(self, source: _Source, raw: bytes) -> None:
        digest = sha256(raw).digest()
        if digest != source.digest:
            source.keys = KeySet.from_jwks(raw, source.where.algorithms)
            source.digest = digest
            self._publish()
            log.info(Event.JWKS_LOADED, issuer=source.issuer, kids=sorted(source.keys.keys))
        JWKS_FETCHES.labels("ok").inc()

    def _failed(self, source: _Source, why: str) -> None:
        JWKS_FETCHES.labels("failed").inc()
        if not source.is_file or why != source.failure:
            log.error(
                Event.JWKS_FAILED, issuer=source.issuer, jwks=source.where.jwks, why=why, holding=source.keys is None
            )
        source.failure = why
        # Without keys the issuer's lanes hold, so the first tries come soon; a server is not asked more than it bears.
        source.next_fetch_at_s = time.monotonic() + min(source.retry_s, self._floor_s, self._refresh_s)
        source.retry_s *= 2

    async def _read_file(self, source: _Source) -> None:
        """Take in the file unless it is as it was when last read well."""
        known, source.signature = source.signature, None  # what fails now is read again, changed or not
        signature, raw = await asyncio.to_thread(_read_changed, Path(source.where.jwks), known)
        if raw is not None:
            self._take(source, raw)
        source.signature = signature

    async def _read_https(self, url: str) -> bytes:
        parts = urlsplit(url)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise JWKSUnavailable("a JWK Set is fetched over https:// only")
        async with self._opening:
            if self._client is None:
                # In a thread: the library and the system's authorities take a while, and no lane waits for them.
                self._client = await asyncio.to_thread(_https_client, self._cafile)
        import httpx

        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S), self._client.stream("GET", url) as response:
                if response.status_code != httpx.codes.OK:
                    raise JWKSUnavailable(f"the server answered {response.status_code} instead of 200")
                body = bytearray()
                async for chunk in response.aiter_raw():  # raw: nothing is decompressed
                    body += chunk
                    if len(body) > limits.JWKS_MAX_BYTES:
                        raise JWKSUnavailable(f"the answer is larger than {limits.JWKS_MAX_BYTES} bytes")
                return bytes(body)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            said = str(error) or type(error).__name__
            raise JWKSUnavailable(f"the server did not give the set: {said}") from None

    # ── the ring ──

    def _publish(self) -> None:
        """Replace the ring whole, so that a decision never sees half a change."""
        self.ring = {issuer: self._with_dev_key(source) for issuer, source in self._sources.items()}
        self.version += 1

    def _with_dev_key(self, source: _Source) -> KeySet | None:
        if source.keys is not None and self._dev_key is not None and HS256 in source.where.algorithms:
            return source.keys.with_dev_key(self._dev_key)
        return source.keys


def is_loopback(host: str) -> bool:
    """Whether a host, as written, is this machine. Names are not resolved: an answer could change."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_dev_secret(settings: Settings) -> bytes | None:
    """The shared secret of development (HS256), or None when there is none, as there should be.

    Raises ConfigError when it is configured for a broker that is not on this machine, readable by everyone, or short.
    """
    path = settings.gate.insecure_dev_hs256
    if path is None:
        return None
    for server in settings.kafka.bootstrap.split(","):
        host = server.strip().rpartition(":")[0].strip("[]")
        if not is_loopback(host):
            raise ConfigError(
                f"setting gate.insecure_dev_hs256 is for development, but kafka.bootstrap names {host or server}: "
                "remove it, or use a broker on localhost"
            )
    secret, mode, path = _configured_secret(settings) if path == JWT_SECRET else _secret_in(path)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"setting gate.insecure_dev_hs256: everyone may read {path}: `chmod 600 {path}`")
    if len(secret) < limits.HS256_SECRET_MIN_BYTES:
        raise ConfigError(
            f"setting gate.insecure_dev_hs256: {path} holds {len(secret)} bytes, HS256 needs at least "
            f"{limits.HS256_SECRET_MIN_BYTES} (RFC 7518 section 3.2): `openssl rand -hex 32` makes one"
        )
    return secret


def _secret_in(path: Path) -> tuple[bytes, int, Path]:
    """The secret a file holds, and the file's mode."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            return file.read(limits.TOKEN_MAX_BYTES).rstrip(b"\r\n"), mode, path
    except OSError as error:
        raise ConfigError(f"setting gate.insecure_dev_hs256: {path}: {error.strerror}") from None


def _configured_secret(settings: Settings) -> tuple[bytes, int, Path]:
    """The secret that stands in the settings, and the mode of their file, if it is from there."""
    text = settings.security.jwt_secret
    if text is None:
        raise ConfigError("setting gate.insecure_dev_hs256 names security.jwt_secret, which is not set: set it")
    file = file_that_says("security", "jwt_secret")
    return text.encode(), 0 if file is None else file.stat().st_mode, file or JWT_SECRET


def _read_changed(path: Path, known: tuple[int, ...] | None) -> tuple[tuple[int, ...], bytes | None]:
    """A file's signature and, when that is not the known one, its bytes."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would block for ever
            raise JWKSUnavailable(f"{path} is not a file")
        signature = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)
        if signature == known:
            return signature, None
        with path.open("rb") as file:
            return signature, file.read(limits.JWKS_MAX_BYTES + 1)
    except OSError as error:
        raise JWKSUnavailable(f"{path}: {error.strerror}") from None


def _https_client(cafile: Path | None) -> httpx.AsyncClient:
    import httpx  # by those alone whose issuers publish over HTTPS

    return httpx.AsyncClient(
        verify=verifying(cafile, _CAFILE),
        follow_redirects=False,  # a redirect would move the root of trust
        timeout=FETCH_TIMEOUT_S,
        trust_env=False,  # no proxy, no .netrc
        headers={"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"},
    )


def _cancel(source: _Source) -> list[asyncio.Task[None]]:
    tasks = [task for task in (source.loop, source.wanted, source.fetching) if task is not None]
    for task in tasks:
        task.cancel()
    return tasks
