"""`tollgate token issue`: tokens by the keys of this machine, by what an identity's roles allow, or asked of a door."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from app.cli import common, given
from app.cli.common import AsIdentity, Bootstrap, Prefix, SecretFile

if TYPE_CHECKING:
    from app.authority.decide import Denied
    from app.authority.rights import Client
    from app.config import Settings
    from app.issuer.issuing import Wanted
    from app.issuer.mint import DevKeys, Keys

PLACE: Final = "{n}"  # in an idempotency key: the number of the token under --count
CHUNK: Final = 1_000  # tokens whose records are written together, before any of them is shown


class UsesName(StrEnum):
    """How often a token may be used."""

    ONCE = "once"  # one-shot
    MANY = "many"  # the webhook pattern


class ClassName(StrEnum):
    """What a token is for. One of a class never works in another's place."""

    TRIGGER = "trigger"  # starts jobs
    USER = "user"  # says who a person is
    HOST = "host"  # says which host it is, of which platform and level


def issue(
    job: Annotated[
        list[str] | None, typer.Option("--job", show_default=False, help="what it may start; repeatable with many uses")
    ] = None,
    *,
    ttl: Annotated[
        str | None, typer.Option(show_default=False, help="required: 300, 5m, 24h; at most 24h (once) or 90d (many)")
    ] = None,
    uses: Annotated[UsesName, typer.Option(help="once, or many for the webhook pattern")] = UsesName.ONCE,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=TEXT|NAME:=JSON", help="a parameter to fix; repeatable; never a secret"),
    ] = None,
    params_file: Annotated[
        Path | None, typer.Option(help="JSON file with parameters to fix; --param wins over it", show_default=False)
    ] = None,
    params_sha256: Annotated[
        str | None, typer.Option(help="fix the digest of the emitter's parameters", show_default=False)
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="in the token: retries with new tokens start one job; {n} under --count", show_default=False),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="sub (default issuer.subject)", show_default=False)] = None,
    org: Annotated[str | None, typer.Option(help="org_id (default issuer.org_id)", show_default=False)] = None,
    issuer: Annotated[str | None, typer.Option(help="iss (default issuer.issuer)", show_default=False)] = None,
    audience: Annotated[
        str | None, typer.Option(help="aud (default that of this deployment)", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="how many tokens, one a line")] = 1,
    reference: Annotated[
        bool, typer.Option("--reference", help="print a handle (ref:…), and write what it stands for to Kafka")
    ] = False,
    bound_to: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="it dies with this object of the registry: job/NAME, trust/ISSUER", show_default=False
        ),
    ] = None,
    insecure_dev_hs256: Annotated[
        bool, typer.Option("--insecure-dev-hs256", help="sign with the development secret of gate.insecure_dev_hs256")
    ] = False,
    token_class: Annotated[
        ClassName, typer.Option("--class", help="user and host tokens are for such an identity itself, with --as")
    ] = ClassName.TRIGGER,
    login: Annotated[
        bool, typer.Option("--login", help="ask the `tollgate serve` you are logged in at, as who you are there")
    ] = False,
    identity: AsIdentity = None,
    secret_file: SecretFile = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Sign a token and print it, alone, on stdout.

    With --as (or issuer.identity) the roles of that identity in the registry decide, subject and organisation are its
    own, and every token and every refusal (exit 4) leaves a record on the cluster (`tollgate audit issuance`). Without,
    whoever holds the key files issues whatever gates may take, with no record, and only --reference and --bound-to need
    the cluster. A handle says nothing to who sees it and is as good as the token. With --login the same roles decide at
    the `tollgate serve` of `tollgate login`: this machine needs neither keys nor Kafka.

    Example: tollgate token issue --job reports/nightly --ttl 5m > t.jwt

    Example: tollgate token issue --as svc:ci --secret-file ci.secret --job deploy-staging --ttl 5m
    """
    from app.authority.decide import Denied
    from app.issuer.issuing import Wanted
    from app.issuer.keystore import Keystore

    settings = common.settings_of(
        bootstrap, prefix, gate__audience=audience, issuer__issuer=issuer, issuer__identity=identity
    )
    is_trigger = token_class is ClassName.TRIGGER
    asked_as = settings.issuer.identity
    if login:
        _refuse_with_login({
            "--as": identity, "--secret-file": secret_file, "--org": org, "--issuer": issuer, "--audience": audience,
            "--reference": reference, "--bound-to": bound_to, "--insecure-dev-hs256": insecure_dev_hs256,
            "--class": not is_trigger,
        })  # fmt: skip
    elif not is_trigger and (asked_as is None or job or reference or bound_to or insecure_dev_hs256):
        common.fail(f"a {token_class} token is for an identity itself: --as NAME --ttl TTL, and no job", common.USAGE)
    elif secret_file is not None and asked_as is None:
        common.fail("--secret-file is of an identity: name it by --as", common.USAGE)
    if ttl is None:
        _tell(Denied("ttl_missing", "a token needs a lifetime: --ttl 300, 5m or 24h"), common.USAGE)
    if is_trigger and not job:
        _tell(Denied("scope_too_broad", "a token without a job would be one for any job: --job NAME"), common.USAGE)
    wanted = Wanted(
        tuple(job or ()), uses.value, given.length_s("--ttl", ttl), subject, given.params(param or [], params_file),
        params_sha256, reference=reference, bind_to=bound_to, token_class=token_class.value, org_id=org,
    )  # fmt: skip
    numbered = [idempotency_key and idempotency_key.replace(PLACE, str(number)) for number in range(count)]
    if login:
        _by_login(settings, wanted, numbered)
        return
    keys = _dev_keys(settings) if insecure_dev_hs256 else Keystore(settings.issuer.keys_dir, settings.issuer.jwks_file)
    proof = None if asked_as is None else (asked_as, given.secret(asked_as, secret_file))
    denied = common.run(_issue(settings, keys, wanted, numbered, proof))
    if denied is not None:
        _tell(denied, common.NOT_ALLOWED)


async def _issue(
    settings: Settings, keys: Keys, wanted: Wanted, numbered: Sequence[str | None], proof: tuple[str, str] | None
) -> Denied | None:
    """Print a token for each idempotency key; or say why not. `proof` is the name and secret of an identity that asks;
    without, whoever has the keys does, and only what is looked up or kept there needs the cluster.
    """
    from app.authority.decide import Denied
    from app.authority.rights import Rights
    from app.gate.definitions import birth_id_in
    from app.issuer.issuing import Issuer
    from app.registry import read_registry
    from app.stream.appending import appending

    ours = settings.issuer
    client: Client | None = None
    async with appending(settings.kafka) as append:
        issuer = Issuer(settings, keys, append, "cli")
        registry = {} if proof is None and wanted.bind_to is None else await read_registry(settings)
        rights = Rights.of(registry)
        if proof is not None:
            proven = rights.authenticate(proof[0], ours.issuer, proof[1], int(time.time()))
            if isinstance(proven, Denied):
                request = wanted.request(proof[0], ours.org_id)
                return await issuer.deny(proven, request, proof[0], authenticated=False)
            client = proven

        def birth_id_of(registry_key: str) -> str | None:
            return birth_id_in(registry.get(registry_key.encode()))

        for start in range(0, len(numbered), CHUNK):
            some = numbered[start : start + CHUNK]
            if client is not None:
                made = await issuer.issue(client, rights, wanted, birth_id_of, some)
            else:
                made = await issuer.mint(wanted, wanted.request(ours.subject, ours.org_id), birth_id_of, some)
            if isinstance(made, Denied):
                return made
            if client is None:
                await issuer.commit_grants(made)
            print("\n".join(each.token for each in made), flush=True)
    return None


def _tell(denied: Denied, code: int) -> NoReturn:
    common.fail("; ".join(filter(None, (f"{denied.code}: {denied.words}", denied.remedy))), code)


def _refuse_with_login(not_with_it: Mapping[str, Any]) -> None:
    other = next((option for option, value in not_with_it.items() if value), None)
    if other is not None:
        common.fail(f"{other} is not for --login: the door says who you are and signs with its keys", common.USAGE)


def _by_login(settings: Settings, wanted: Wanted, numbered: Sequence[str | None]) -> None:
    """Print a token for each idempotency key, asked of the door one is logged in at. What its rules refuse, it says."""
    from app.cli import door

    there = door.current(settings)
    body = {
        "jobs": wanted.jobs, "lifetime_s": wanted.lifetime_s, "uses": wanted.uses, "subject": wanted.subject,
        "params": wanted.params or None, "params_sha256": wanted.params_sha256,
    }  # fmt: skip
    for key in numbered:
        asked = {name: value for name, value in (body | {"idempotency_key": key}).items() if value is not None}
        print(door.ask(settings, "POST", there.url, "/v1/tokens", there.token, json=asked)["token"])


def _dev_keys(settings: Settings) -> DevKeys:
    from app.issuer.mint import DevKeys
    from app.trust import load_dev_secret

    secret = load_dev_secret(settings)
    if secret is None:
        common.fail("there is no development secret: set gate.insecure_dev_hs256 to its file", common.USAGE)
    common.say("INSECURE: signed with a shared development secret; only gates on this machine should take it")
    return DevKeys(secret)
