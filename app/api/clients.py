"""Who asks for tokens: a client proves to be an identity by its secret or by an assertion signed with its key.

A name nobody has and a wrong secret cost the same and are told alike. What proves its client is never refused for the
failures of others: it is verified first, and only who has failed is told to wait.
"""

from __future__ import annotations

import base64
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from litestar import Request
from litestar.types import HTTPScope

from app.api.forms import Form, OAuthError
from app.api.problems import Problem
from app.api.requests import TOKEN, Headers, own_address
from app.authority.assertion import check_assertion, named_by
from app.authority.identities import check_secret, secret_id
from app.authority.rights import Client, Rights

__all__ = ["Client", "Clients", "Presented", "presented_by"]

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FAILURES_MAX: Final = 10  # of one address with one name and one credential's id, within the window
WINDOW_S: Final = 60.0
REMEMBERED_MAX: Final = 50_000  # addresses with names and ids
ASSERTIONS_MAX: Final = 20_000  # of one identity that are remembered: its own, so that it silences nobody else
_ID_MAX_CHARACTERS: Final = 128  # of what a stranger writes, as much as is remembered


class Presented(NamedTuple):
    """What a request shows to prove its client; nothing of it is verified."""

    claimed: str
    unverified_secret: str | None
    unverified_assertion: str | None
    unverified_id: str  # of the credential it says it is


class Clients:
    """Authenticates clients for one process."""

    def __init__(self, rights: Rights, issuer: str, public_url: str | None, grace_s: int) -> None:
        self._rights, self._issuer, self._public_url, self._grace_s = rights, issuer, public_url, grace_s
        self._failures: OrderedDict[tuple[str, str, str], deque[float]] = OrderedDict()
        self._shown: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._shown_by: Counter[str] = Counter()
        self.on_failure: Callable[[str], Awaitable[None]] | None = None
        self.complaint: Callable[[], str | None] = _nothing  # of the view that the rights come from

    async def authenticate(self, request: Request[Any, Any, Any], headers: Headers, form: Form) -> Client:
        """Raises OAuthError: `invalid_client`, or that it has to wait; Problem where that cannot be told now."""
        complaint = self.complaint()
        if complaint is not None:  # fail closed: who was disabled since is not known to a view that is behind
            raise Problem("not_ready", complaint)
        presented = presented_by(headers, form)
        client = self._client(presented, self._named_at(request.scope))
        if client is not None:
            return client
        address = request.client.host if request.client is not None else ""
        wait_s = self._failed(address, presented)
        if wait_s > 0:
            raise OAuthError(
                "invalid_client", "too many failures with this credential", "client_unauthenticated", 429, wait_s
            )
        if self.on_failure is not None:
            await self.on_failure(presented.claimed)
        raise _unproven("no such client, or not its credential")

    def _client(self, presented: Presented, audiences: frozenset[str]) -> Client | None:
        identity = self._rights.known(presented.claimed, self._issuer)
        now_s = int(time.time())
        if presented.unverified_assertion is not None:
            proven = check_assertion(identity, presented.unverified_assertion, audiences, now_s, self._grace_s)
            if proven is None or identity is None or self._was_shown(identity.name, proven.jti, proven.ends_s, now_s):
                return None
            return None if identity.disabled else Client(identity, proven.credential_id)
        credential = check_secret(identity, presented.unverified_secret or "", now_s)
        if identity is None or identity.disabled or credential is None:
            return None
        return Client(identity, credential.id)

    def _named_at(self, scope: HTTPScope) -> frozenset[str]:
        """What an assertion may be for: the issuer, and the door, its token endpoint and the one it is shown to (RFC
        7523 section 3), at the public URL and, to a client on this machine, where it has reached us.
        """
        bases = {base for base in (self._public_url, own_address(scope)) if base is not None}
        return frozenset({self._issuer, *bases, *(base + path for base in bases for path in (TOKEN, scope["path"]))})

    def _failed(self, address: str, presented: Presented) -> int:
        """Count a failure; how many seconds to wait, where there were too many before it."""
        now = time.monotonic()
        seen = (address, presented.claimed[:_ID_MAX_CHARACTERS], presented.unverified_id[:_ID_MAX_CHARACTERS])
        failures = self._failures.setdefault(seen, deque(maxlen=FAILURES_MAX))
        self._failures.move_to_end(seen)
        if len(self._failures) > REMEMBERED_MAX:
            self._failures.popitem(last=False)
        if len(failures) == FAILURES_MAX and failures[0] > now - WINDOW_S:
            return math.ceil(failures[0] + WINDOW_S - now)
        failures.append(now)  # one that was told to wait is not counted: the wait ends
        return 0

    def _was_shown(self, name: str, jti: str, exp: int, now_s: int) -> bool:
        """An assertion is for one request. This process remembers; another may be shown it once more."""
        while self._shown and next(iter(self._shown.values())) + self._grace_s < now_s:
            (of, _), _ = self._shown.popitem(last=False)
            self._shown_by[of] -= 1
            if not self._shown_by[of]:
                del self._shown_by[of]
        if (name, jti) in self._shown:
            return True
        if self._shown_by[name] >= ASSERTIONS_MAX:
            raise Problem("overloaded", "too many assertions of this client are not over yet")
        self._shown[name, jti] = exp
        self._shown_by[name] += 1
        return False


def presented_by(headers: Headers, form: Form) -> Presented:
    """One way to prove it, no more (RFC 6749 section 2.3)."""
    basic = headers.get("authorization")
    assertion, secret, client_id = form.get("client_assertion"), form.get("client_secret"), form.get("client_id")
    shown = sum(each is not None for each in (basic, assertion, secret))
    if shown > 1:  # RFC 6749 section 5.2
        raise OAuthError("invalid_request", "show one credential, not several", "client_unauthenticated")
    if shown == 0:
        raise _unproven("show a credential: a secret or an assertion")
    if basic is not None:
        name, secret = _basic(basic)
        named = secret_id(secret)
    elif assertion is not None:
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            raise OAuthError("invalid_request", f"client_assertion_type is not {ASSERTION_TYPE}")
        name, named = named_by(assertion)
    else:
        name, named = client_id or "", secret_id(secret or "")
    if client_id is not None and client_id != name:
        raise _unproven("client_id names another client")
    return Presented(name, secret, assertion, named)


def _nothing() -> None:
    return None


def _unproven(words: str) -> OAuthError:
    return OAuthError("invalid_client", words, "client_unauthenticated", 401)


def _basic(header: str) -> tuple[str, str]:
    """Name and secret (RFC 7617). Our names hold colons and our secrets none, so it is split at the last one.

    RFC 6749 section 2.3.1 wants both form-encoded; clients that do not do it send the same for all other characters.
    """
    scheme, _, encoded = header.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError
        name, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").rpartition(":")
        if not colon:
            raise ValueError
    except ValueError:
        raise _unproven("the Authorization header is not Basic") from None
    return unquote(name), unquote(secret)
