"""The signing keys on disk: one directory, one PEM a key, one state file, one writer at a time.

A key's status follows from times, so that no command has to be run on time. It is published as soon as it is made,
signs from `signs_from_s` until the next one does, and stays published until the last token it signed can no longer
be honoured:

    next ──signs_from_s──▶ active ──the next key's signs_from_s──▶ retiring ──retire──▶ removed
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from app.gate.keyset import EDDSA, ES256, is_kid
from app.issuer.files import write_atomically
from app.issuer.jwks import PublicKey, jwks_document, write_jwks

Algorithm = Literal["ES256", "EdDSA"]
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

STATE_FILE: Final = "state.json"
LOCK_FILE: Final = ".lock"
LOCK_TIMEOUT_S: Final = 5.0
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
# The bound on a key's last exp is noted in steps, so that issuing writes once a step and not once a token.
LAST_EXP_STEP_S: Final = 3600


class KeystoreError(Exception):
    """The keystore cannot do this; the message is one sentence that says why and what to do."""


class Status(StrEnum):
    """Where a key is in its life."""

    NEXT = "next"
    ACTIVE = "active"
    RETIRING = "retiring"
    REMOVED = "removed"


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a key. Times are seconds since 1970."""

    kid: str
    algorithm: Algorithm
    created_s: int
    signs_from_s: int
    last_exp_s: int = 0  # no token of this key expires later; 0: it has signed none
    removed_s: int | None = None


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[KeyRecord, ...] = ()
    version: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, ready to sign. Its repr shows the kid only."""

    kid: str
    algorithm: str
    private: PrivateKey | bytes  # bytes: the shared secret of development

    def __repr__(self) -> str:
        return f"SigningKey({self.kid!r}, {self.algorithm!r})"


class Keystore:
    """The keys of one issuer. `jwks_file` is rewritten with every change of what is published."""

    def __init__(self, directory: Path, jwks_file: Path) -> None:
        self.directory = directory
        self.jwks_file = jwks_file

    # ── reading ──

    def records(self) -> tuple[KeyRecord, ...]:
        """All keys, oldest first. Raises KeystoreError when the state cannot be trusted."""
        try:
            _refuse_readable_by_others(self.directory)
            raw = (self.directory / STATE_FILE).read_bytes()
        except FileNotFoundError:
            return ()
        try:
            return msgspec.json.decode(raw, type=_State).keys
        except msgspec.DecodeError as error:
            damaged = self.directory / STATE_FILE
            raise KeystoreError(f"{damaged} is damaged ({error}): restore it from a backup") from None

    def signing_key(self, now_s: int) -> SigningKey:
        """The key that signs now."""
        record = _active(self.records(), now_s)
        if record is None:
            raise KeystoreError(f"there is no signing key in {self.directory}: `tollgate keys generate` makes one")
        return SigningKey(record.kid, record.algorithm, self._private(record))

    def document(self) -> bytes:
        """The JWK Set as it should be published."""
        return self._document(self.records())

    # ── changing ──

    def generate(self, algorithm: Algorithm, now_s: int) -> KeyRecord:
        """Make the first key, which signs at once."""
        with self._alone() as records:
            if _active(records, now_s) is not None:
                raise KeystoreError(
                    f"{self.directory} has a signing key already: `tollgate keys rotate` brings in the next one"
                )
            return self._add(records, algorithm, now_s, signs_from_s=now_s)

    def rotate(self, algorithm: Algorithm | None, overlap_s: int, now_s: int) -> KeyRecord:
        """Publish the next key now; it signs after `overlap_s`, when every verifier has seen it."""
        with self._alone() as records:
            active = _active(records, now_s)
            if active is None:
                raise KeystoreError("there is no signing key to rotate: `tollgate keys generate` makes the first")
            waiting = [record for record in records if status_of(record, records, now_s) is Status.NEXT]
            if waiting:
                raise KeystoreError(
                    f"{waiting[0].kid} is published already and signs in {waiting[0].signs_from_s - now_s} s: "
                    "rotate again after that"
                )
            return self._add(records, algorithm or active.algorithm, now_s, signs_from_s=now_s + overlap_s)

    def retire(self, kid: str, honoured_for_s: int, now_s: int, *, emergency: bool = False) -> KeyRecord | None:
        """Remove a key from the JWK Set and destroy its private part.

        `honoured_for_s` is how long after its exp a token may still be judged: the grace and the cap on queue age.
        In an emergency the key goes at once; if it was signing, the key that signs instead is returned.
        """
        with self._alone() as records:
            record = next((each for each in records if each.kid == kid and each.removed_s is None), None)
            if record is None:
                raise KeystoreError(f"there is no published key {kid!r}: `tollgate keys list` shows them")
            status = status_of(record, records, now_s)
            if not emergency:
                _refuse_early(record, status, honoured_for_s, now_s)
            left = tuple(msgspec.structs.replace(each, removed_s=now_s) if each is record else each for each in records)
            successor = None
            if status is Status.ACTIVE:
                # Verifiers take no empty set (it may be a mishap) and would go on with the key that must go.
                left, successor = self._succeed(left, record.algorithm, now_s)
            self._publish(left)  # before all else: it cuts the key's tokens off
            self._write(left)
            (self.directory / f"{kid}.pem").unlink(missing_ok=True)
            return successor

    def note_expiry(self, kid: str, exp_s: int) -> None:
        """Note that a token of this key expires at `exp_s`; called before the token is handed out."""
        record = next((each for each in self.records() if each.kid == kid), None)
        if record is not None and exp_s <= record.last_exp_s:
            return
        bound = (exp_s // LAST_EXP_STEP_S + 1) * LAST_EXP_STEP_S
        with self._alone() as records:
            if not any(each.kid == kid and each.removed_s is None for each in records):
                raise KeystoreError(f"the key {kid!r} has just been removed: issue the token again")
            self._write(tuple(
                msgspec.structs.replace(each, last_exp_s=max(each.last_exp_s, bound)) if each.kid == kid else each
                for each in records
            ))  # fmt: skip

    def publish(self) -> None:
        """Write the JWK Set again, as after an interrupted command."""
        with self._alone() as records:
            if all(record.removed_s is not None for record in records):  # a mistaken directory, most likely
                raise KeystoreError(
                    f"there is no key to publish in {self.directory}: `tollgate keys generate` makes one"
                )
            self._publish(records)

    # ── within the lock ──

    def _add(self, records: Sequence[KeyRecord], algorithm: Algorithm, now_s: int, signs_from_s: int) -> KeyRecord:
        record = self._make(algorithm, now_s, signs_from_s)
        changed = (*records, record)
        self._write(changed)
        self._publish(changed)
        return record

    def _succeed(
        self, records: tuple[KeyRecord, ...], algorithm: Algorithm, now_s: int
    ) -> tuple[tuple[KeyRecord, ...], KeyRecord]:
        """Let the key that waits sign at once, or make one."""
        for waiting in records:
            if waiting.removed_s is None and waiting.signs_from_s > now_s:
                early = msgspec.structs.replace(waiting, signs_from_s=now_s)
                return tuple(early if each is waiting else each for each in records), early
        made = self._make(algorithm, now_s, signs_from_s=now_s)
        return (*records, made), made

    def _make(self, algorithm: Algorithm, now_s: int, signs_from_s: int) -> KeyRecord:
        private: PrivateKey = (
            ec.generate_private_key(ec.SECP256R1()) if algorithm == ES256 else ed25519.Ed25519PrivateKey.generate()
        )
        kid = f"{time.strftime('%Y%m%d', time.gmtime(now_s))}-{secrets.token_hex(4)}"
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(self.directory / f"{kid}.pem", pem, _FILE_MODE)
        return KeyRecord(kid, algorithm, now_s, signs_from_s)

    def _write(self, records: Sequence[KeyRecord]) -> None:
        state = msgspec.json.format(msgspec.json.encode(_State(tuple(records))), indent=1)
        write_atomically(self.directory / STATE_FILE, state, _FILE_MODE)

    def _publish(self, records: Sequence[KeyRecord]) -> None:
        write_jwks(self.jwks_file, self._document(records))

    def _document(self, records: Sequence[KeyRecord]) -> bytes:
        published = [record for record in records if record.removed_s is None]
        return jwks_document((record.kid, self._public(record)) for record in published)

    def _public(self, record: KeyRecord) -> PublicKey:
        return self._private(record).public_key()

    def _private(self, record: KeyRecord) -> PrivateKey:
        path = self.directory / f"{record.kid}.pem"
        if not is_kid(record.kid) or "/" in record.kid:
            raise KeystoreError(f"{self.directory / STATE_FILE} names a key that cannot be ours")
        try:
            _refuse_readable_by_others(path)
            private = load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            raise KeystoreError(f"the private key {path} is missing: restore it, or retire it --emergency") from None
        except (ValueError, TypeError):
            raise KeystoreError(f"{path} is not a private key in PKCS8 PEM: restore it from a backup") from None
        match record.algorithm, private:
            case "ES256", ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()):
                return private
            case "EdDSA", ed25519.Ed25519PrivateKey():
                return private
        raise KeystoreError(f"{path} does not hold a key for {record.algorithm}: restore it from a backup")

    @contextmanager
    def _alone(self) -> Iterator[tuple[KeyRecord, ...]]:
        """Hold the lock of the directory: two writers would lose each other's keys."""
        self.directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        _refuse_readable_by_others(self.directory)
        descriptor = os.open(self.directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise KeystoreError(f"another command is changing {self.directory}: try again") from None
                    time.sleep(0.02)
            yield self.records()
        finally:
            os.close(descriptor)  # which unlocks


def status_of(record: KeyRecord, records: Sequence[KeyRecord], now_s: int) -> Status:
    if record.removed_s is not None:
        return Status.REMOVED
    if record.signs_from_s > now_s:
        return Status.NEXT
    return Status.ACTIVE if record is _active(records, now_s) else Status.RETIRING


def retire_from_s(record: KeyRecord, honoured_for_s: int) -> int:
    """When the last token of a key can no longer be honoured."""
    return record.last_exp_s + honoured_for_s if record.last_exp_s else 0


def _active(records: Sequence[KeyRecord], now_s: int) -> KeyRecord | None:
    """Of the keys that may sign, the one that began last; of two that began together, the later made."""
    may_sign = [record for record in records if record.removed_s is None and record.signs_from_s <= now_s]
    return max(enumerate(may_sign), key=lambda each: (each[1].signs_from_s, each[0]))[1] if may_sign else None


def _refuse_early(record: KeyRecord, status: Status, honoured_for_s: int, now_s: int) -> None:
    if status in {Status.ACTIVE, Status.NEXT}:
        raise KeystoreError(
            f"{record.kid} is {status.value}: `tollgate keys rotate` first, or --emergency if it has leaked"
        )
    wait_s = retire_from_s(record, honoured_for_s) - now_s
    if wait_s > 0:
        raise KeystoreError(
            f"tokens signed with {record.kid} may be honoured for {wait_s} s more: retire it then, "
            "or --emergency if it has leaked"
        )


def _refuse_readable_by_others(path: Path) -> None:
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        wanted = _DIRECTORY_MODE if stat.S_ISDIR(mode) else _FILE_MODE
        raise KeystoreError(f"others may read {path}, which holds private keys: `chmod {wanted:o} {path}`")


ALGORITHMS: Final[tuple[Algorithm, ...]] = (ES256, EDDSA)
