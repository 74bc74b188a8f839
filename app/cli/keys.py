"""`tollgate keys`: make, rotate and retire the keys that sign tokens, and publish the public ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common, given
from app.cli.common import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.config import Settings
    from app.issuer.keystore import Algorithm, KeyRecord, Keystore

app = common.new_app(help="Signing keys and their JWK Set.")

COLUMNS: Final = ("kid", "algorithm", "status", "created", "signs_from", "retire_from")

KeysDir = Annotated[
    Path | None, typer.Option("--keys-dir", show_default=False, help="private keys (default .tollgate/keys)")
]
JwksFile = Annotated[
    Path | None, typer.Option("--jwks-file", show_default=False, help="public JWK Set (default .tollgate/jwks.json)")
]
AlgorithmName = Annotated[str | None, typer.Option("--algorithm", show_default=False, help="ES256 (default) or EdDSA")]


@app.command()
def generate(
    algorithm: AlgorithmName = None, keys_dir: KeysDir = None, jwks_file: JwksFile = None, output: Output = None
) -> None:
    """Make the first signing key and publish it.

    Example: tollgate keys generate
    """
    store, settings = _open(keys_dir, jwks_file)
    now_s = int(time.time())
    made = store.generate(_algorithm(algorithm) or "ES256", now_s)
    _print([made], store, settings, now_s, output)
    common.say(f"public keys: {store.jwks_file}")


@app.command()
def rotate(
    *,
    overlap: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="how long the key is published before it signs (default: twice the gates' refresh interval)",
        ),
    ] = None,
    algorithm: AlgorithmName = None,
    keys_dir: KeysDir = None,
    jwks_file: JwksFile = None,
    output: Output = None,
) -> None:
    """Publish the next key now; it signs when every gate has had the time to see it.

    The key before it stays published until its last token can no longer be honoured; `keys retire` removes it then.

    Example: tollgate keys rotate --overlap 10m
    """
    store, settings = _open(keys_dir, jwks_file)
    now_s = int(time.time())
    overlap_s = given.length_s("--overlap", overlap) if overlap is not None else _overlap_s(settings)
    made = store.rotate(_algorithm(algorithm), overlap_s, now_s)
    _print([made], store, settings, now_s, output)
    common.say(f"{made.kid} is published in {store.jwks_file} and signs in {overlap_s} s")


@app.command()
def retire(
    kid: Annotated[str, typer.Argument(help="the key to remove", show_default=False)],
    *,
    emergency: Annotated[
        bool, typer.Option("--emergency", help="at once, and every token it signed with it: the key has leaked")
    ] = False,
    keys_dir: KeysDir = None,
    jwks_file: JwksFile = None,
) -> None:
    """Remove a key from the JWK Set and destroy its private part.

    Refused while tokens of the key may still be honoured, unless --emergency.

    Example: tollgate keys retire 20260131-0a1b2c3d
    """
    store, settings = _open(keys_dir, jwks_file)
    successor = store.retire(kid, _honoured_for_s(settings), int(time.time()), emergency=emergency)
    common.say(f"{kid} is removed from {store.jwks_file}; gates that read it over HTTPS follow at their next refresh")
    if successor is not None:
        common.say(f"{successor.kid} signs from now on")
    if emergency:
        common.say(f"to cut its tokens off in every gate within a second: tollgate token revoke --kid {kid}")


@app.command("list")
def list_keys(keys_dir: KeysDir = None, jwks_file: JwksFile = None, output: Output = None) -> None:
    """The keys, what each is for now, and from when it may be retired.

    Example: tollgate keys list -o json
    """
    store, settings = _open(keys_dir, jwks_file)
    records = store.records()
    _print(records, store, settings, int(time.time()), output)
    if not records:
        common.say("there are no keys: `tollgate keys generate` makes the first")


@app.command()
def jwks(keys_dir: KeysDir = None, jwks_file: JwksFile = None) -> None:
    """Write the JWK Set again, and print it. It holds public keys only.

    Example: tollgate keys jwks
    """
    store, _ = _open(keys_dir, jwks_file)
    store.publish()
    print(store.document().decode(), end="")
    common.say(f"written to {store.jwks_file}")


def _open(keys_dir: Path | None, jwks_file: Path | None) -> tuple[Keystore, Settings]:
    from app.issuer.keystore import Keystore

    settings = common.settings_of(issuer__keys_dir=keys_dir, issuer__jwks_file=jwks_file)
    return Keystore(settings.issuer.keys_dir, settings.issuer.jwks_file), settings


def _algorithm(named: str | None) -> Algorithm | None:
    from app.issuer.keystore import ALGORITHMS

    for algorithm in ALGORITHMS:
        if algorithm == named:
            return algorithm
    if named is not None:
        common.fail(f"--algorithm {named}: one of {', '.join(ALGORITHMS)}", common.USAGE)
    return None


def _overlap_s(settings: Settings) -> int:
    """Twice the interval at which gates read the set: one read may just have happened, one may fail."""
    return int(2 * settings.gate.jwks_refresh_s)


def _honoured_for_s(settings: Settings) -> int:
    """How long after its exp a token may still be judged: appended within the grace, and then queued."""
    return settings.gate.grace_s + settings.gate.queue_age_cap_s


def _print(
    records: Sequence[KeyRecord], store: Keystore, settings: Settings, now_s: int, output: common.OutputForm | None
) -> None:
    from app.cli.when import utc
    from app.issuer.keystore import retire_from_s, status_of

    everyone = store.records()
    rows: list[dict[str, Any]] = []
    for record in records:
        of_state = next(each for each in everyone if each.kid == record.kid)
        from_s = retire_from_s(of_state, _honoured_for_s(settings))
        rows.append(
            {
                "kid": record.kid,
                "algorithm": record.algorithm,
                "status": status_of(of_state, everyone, now_s).value,
                "created": utc(record.created_s * 1000),
                "signs_from": utc(record.signs_from_s * 1000),
                "retire_from": utc(from_s * 1000) if from_s else None,
            }
        )
    common.print_rows(rows, COLUMNS, output)
