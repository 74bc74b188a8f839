"""The HTTP door as the command line asks it: under the login of a person, which is kept in a file of one user.

The token of a login is never shown. It goes to the address it came from, over TLS or within this machine, and nowhere
else.
"""

from __future__ import annotations

import ssl
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from app.cli import common
from app.tls import verifying

if TYPE_CHECKING:
    import httpx

    from app.config import Settings

TIMEOUT_S: Final = 40.0
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
ANSWER_MAX_BYTES: Final = 4 << 20


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is logged in where, until when. Holds a live token: its repr does not show it."""

    url: str
    identity: str
    jti: str
    expires_at_s: int
    token: str

    def __repr__(self) -> str:
        return f"Login({self.identity!r} at {self.url!r})"


# ── the file ──


def file_of(settings: Settings) -> Path:
    return settings.login.file or _directory() / "login.json"


def _directory() -> Path:
    """Of the user's own settings (XDG Base Directory Specification)."""
    import os

    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "tollgate"


def keep(settings: Settings, login: Login) -> Path:
    """Write the login, in place of an earlier one. Raises OSError."""
    from app.issuer.files import write_atomically

    file = file_of(settings)
    if not file.parent.exists():
        file.parent.mkdir(mode=DIRECTORY_MODE, parents=True)
    if settings.login.file is None:
        file.parent.chmod(DIRECTORY_MODE)
    write_atomically(file, msgspec.json.encode(login) + b"\n", FILE_MODE)
    return file


def kept(settings: Settings) -> Login | None:
    """The login as it was written, expired or not; None: nobody is logged in. Fails on a file others may read."""
    file = file_of(settings)
    try:
        mode, raw = file.stat().st_mode, file.read_bytes()
    except FileNotFoundError:
        return None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        common.fail(f"others may read {file}, which holds a token: `tollgate logout`, then `tollgate login` again")
    try:
        return msgspec.json.decode(raw, type=Login)
    except msgspec.DecodeError:
        common.fail(f"{file} is no login: remove it, and `tollgate login` again")


def current(settings: Settings) -> Login:
    """The login that commands act under. None, and one that has expired, end the command with a code of their own."""
    from app.cli.when import utc

    login = kept(settings)
    if login is None:
        common.fail("nobody is logged in here: `tollgate login --as u:NAME`", common.LOGIN_NEEDED)
    if time.time() >= login.expires_at_s:
        common.fail(
            f"the login of {login.identity} at {login.url} expired at {utc(login.expires_at_s * 1000)}: "
            f"`tollgate login --as {login.identity}` again",
            common.LOGIN_NEEDED,
        )
    return login


# ── asking ──


def address(url: str) -> str:
    """The door's address, without a slash at the end: TLS, or this machine."""
    from app.trust import is_loopback

    url = url.rstrip("/")
    parts = urlsplit(url)
    plain = parts.scheme == "http" and is_loopback(parts.hostname or "")
    if not parts.hostname or parts.username is not None or not (parts.scheme == "https" or plain):
        common.fail(
            "login.url (--url) has to be https://HOST, or http://localhost:PORT on this machine: a secret or a token "
            "would go in clear",
            common.USAGE,
        )
    return url


def ask(settings: Settings, method: str, url: str, path: str, auth: tuple[str, str] | str, **options: Any) -> Any:
    """The answer's JSON, or None where it has no body. A refusal ends the command with its reason.

    `auth` is name and secret of an identity, or the token of a login.
    """
    import httpx

    headers = {"Authorization": f"Bearer {auth}"} if isinstance(auth, str) else {}
    verify: ssl.SSLContext | bool = True
    if settings.login.cafile is not None:
        verify = verifying(settings.login.cafile, "login.cafile")
    try:
        with httpx.Client(verify=verify, trust_env=url.startswith("https:"), timeout=TIMEOUT_S) as client:
            answer = client.request(
                method, url + path, auth=None if isinstance(auth, str) else auth, headers=headers, **options
            )
    except httpx.TimeoutException:
        common.fail(f"{url} did not answer in {TIMEOUT_S:g} s", common.TIMED_OUT)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        common.fail(
            f"{url} does not answer ({type(error).__name__}): start one with `tollgate serve`, or name yours by --url "
            "or login.url"
        )
    document = _document(answer)
    if answer.status_code >= 300:
        _refused(url, answer.status_code, document, by_token=isinstance(auth, str))
    if document is None and answer.content:
        common.fail(f"{url}{path} answered no JSON: is it a `tollgate serve`?")
    return document


def _document(answer: httpx.Response) -> Any:
    try:
        return answer.json() if 0 < len(answer.content) <= ANSWER_MAX_BYTES else None
    except ValueError:
        return None


def _refused(url: str, status: int, document: Any, *, by_token: bool) -> NoReturn:
    """A problem (RFC 9457) or an error of OAuth, as one sentence."""
    told = document if isinstance(document, dict) else {}
    code = told.get("denial") or told.get("reason") or told.get("error") or f"status {status}"
    what = told.get("detail") or told.get("error_description") or told.get("title") or "it gave no reason"
    remedy = told.get("remedy") if told.get("denial") is None else None
    sentence = f"{url}: {code}: {what}" + (f"; {remedy}" if remedy else "")
    if status == 401 and by_token:
        common.fail(f"{sentence}; `tollgate login` again", common.LOGIN_NEEDED)
    denied = status in {401, 403} or told.get("error") == "invalid_scope"
    common.fail(sentence, common.NOT_ALLOWED if denied else common.FAILED)
