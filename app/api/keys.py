"""The public keys that this deployment's tokens are signed with (RFC 7517), as the issuer's commands publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import orjson

from app.api.problems import Problem
from app.gate import limits

MAX_AGE_S: Final = 300
CACHE_CONTROL: Final = f"public, max-age={MAX_AGE_S}"
MEDIA_TYPE: Final = "application/jwk-set+json"
# By name, one by one: nothing that signs can slip out.
_PUBLIC: Final = ("kty", "crv", "alg", "use", "kid", "x", "y")
_SIGNING_TYPES: Final = ("EC", "OKP")


class PublicKeys:
    """The JWK Set in a file, read again when the file has changed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._document = b""

    def document(self) -> bytes:
        """Raises Problem when no set is there, or none that can be read."""
        try:
            stat = self._file.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self._document = public_document(self._file.read_bytes()[: limits.JWKS_MAX_BYTES + 1])
                self._seen = seen
        except (OSError, ValueError):
            raise Problem("keys_unpublished") from None
        return self._document


def public_document(raw: bytes) -> bytes:
    """The set with the public members of its keys alone. Raises ValueError for what is no set."""
    if len(raw) > limits.JWKS_MAX_BYTES:
        raise ValueError("too large")
    document: Any = orjson.loads(raw)
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("no keys")  # noqa: TRY004 - of the document, not of an argument
    public = [
        {name: key[name] for name in _PUBLIC if isinstance(key.get(name), str)}
        for key in keys
        if isinstance(key, dict) and key.get("kty") in _SIGNING_TYPES
    ]
    return orjson.dumps({"keys": public})
