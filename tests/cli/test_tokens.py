"""`tollgate token` as an issuer and as ops use it: one token on stdout, refusals by name, and no token anywhere else."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from app.gate.revocation import Revocations
from tests.cli.program import PROGRAM, Said, within
from tests.support.gates import environment
from tests.support.jose import claims_of
from tests.support.reader import read_topic

FAILED, USAGE, NOT_ALLOWED = 1, 2, 4
DAY_S = 86_400


class Issuer:
    """An issuer with one key, and the program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = environment("127.0.0.1:1", "tollgate.") | {
            "HOME": str(directory),
            "TOLLGATE_CONFIG": "",
            "TOLLGATE_ISSUER__KEYS_DIR": str(directory / "keys"),
            "TOLLGATE_ISSUER__JWKS_FILE": str(directory / "jwks.json"),
        }

    def __call__(
        self, *arguments: str, code: int = 0, token: str | None = None, env: dict[str, str] | None = None
    ) -> Said:
        """Run `tollgate token`; the token given on stdin must not come back."""
        said = within(self.env | (env or {}), "token", *arguments, stdin=token)
        assert said.code == code, said.err
        if token is not None:
            holds_nothing_of(token, said.out + said.err)
        return said

    def issue(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        (token,) = self("issue", "--job", "a/b", "--ttl", "60", *arguments, env=env).out.split()
        return token


def holds_nothing_of(token: str, text: str) -> None:
    """Neither the token nor a part by which it could be used."""
    assert token not in text
    assert token.rpartition(".")[2] not in text


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    made = Issuer(tmp_path_factory.mktemp("issuer"))
    assert within(made.env, "keys", "generate").code == 0
    return made


# ── issue ──


def test_a_token_stands_alone_on_stdout_and_says_what_was_asked(issuer: Issuer) -> None:
    before_s = int(time.time())
    said = issuer(
        "issue", "--job", "reports/nightly", "--ttl", "5m", "--param", "region=eu", "--param", "n:=3",
        "--idempotency-key", "order-7", "--subject", "service:ci", "--org", "acme",
    )  # fmt: skip
    assert said.out.count("\n") == 1
    assert said.err == ""
    claims = claims_of(said.out.strip())
    (grant,) = claims["authorization_details"]
    assert (grant["jobs"], grant["params"]) == (["reports/nightly"], {"region": "eu", "n": 3})
    assert (claims["sub"], claims["org_id"], claims["uses"]) == ("service:ci", "acme", "once")
    assert (claims["idempotency_key"], claims["aud"]) == ("order-7", "tollgate:tollgate.")
    assert before_s <= claims["iat"] <= time.time()
    assert claims["exp"] - claims["iat"] == 300


def test_a_thousand_tokens_are_a_thousand_different_ones(issuer: Issuer) -> None:
    said = issuer("issue", "--job", "a/b", "--ttl", "60", "--count", "1000", "--idempotency-key", "k-{n}")
    claims = [claims_of(token) for token in said.out.split()]
    assert len({each["jti"] for each in claims}) == 1000
    assert [each["idempotency_key"] for each in claims] == [f"k-{n}" for n in range(1000)]


def test_a_reader_that_has_seen_enough_is_no_failure(issuer: Issuer) -> None:
    words = ("token", "issue", "--job", "a/b", "--ttl", "60", "--count", "500")
    with subprocess.Popen([PROGRAM, *words], env=issuer.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--job", "a/b"), USAGE, "ttl_missing"),
        (("--job", "a/b", "--ttl", "0"), NOT_ALLOWED, "expiry_malformed"),
        (("--job", "a/b", "--ttl", "25h"), NOT_ALLOWED, "ttl_too_long"),
        (("--job", "a/b", "--ttl", "91d", "--uses", "many"), NOT_ALLOWED, "ttl_too_long"),
        (("--ttl", "60"), USAGE, "scope_too_broad"),
        (("--job", "*", "--ttl", "60"), NOT_ALLOWED, "scope_too_broad"),
        (("--job", "a/*", "--ttl", "60"), NOT_ALLOWED, "scope_too_broad"),
        (("--job", "a/b", "--job", "a/c", "--ttl", "60"), NOT_ALLOWED, "scope_too_broad"),
        (("--job", "a/b", "--ttl", "60", "--param", "db_password=hunter2"), NOT_ALLOWED, "secret_in_clear"),
        (("--job", "a/b", "--ttl", "60", "--idempotency-key", ""), NOT_ALLOWED, "idempotency_key"),
        (("--job", "a/b", "--ttl", "soon"), USAGE, "--ttl"),
        (("--job", "a/b", "--ttl", "60", "--param", "region"), USAGE, "--param"),
        (("--job", "a/b", "--ttl", "60", "--count", "0"), USAGE, "--count"),
        (("--job", "a/b", "--ttl", "60", "--uses", "thrice"), USAGE, "--uses"),
        (("--job", "a/b", "--ttl", "60", "--insecure-dev-hs256"), USAGE, "insecure_dev_hs256"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_no_token_may_say_is_refused_by_name_and_nothing_is_printed(
    issuer: Issuer, arguments: tuple[str, ...], code: int, named: str
) -> None:
    said = issuer("issue", *arguments, code=code)
    assert said.out == ""
    assert named in said.err
    assert "hunter2" not in said.err


def test_without_a_key_nothing_is_issued(tmp_path: Path) -> None:
    said = Issuer(tmp_path)("issue", "--job", "a/b", "--ttl", "60", code=FAILED)
    assert said.out == ""
    assert "tollgate keys generate" in said.err


def test_a_token_never_becomes_a_parameter(issuer: Issuer) -> None:
    token = issuer.issue()
    file = issuer.directory / "params.json"
    file.write_text(json.dumps({"note": token}))
    said = issuer("issue", "--job", "a/b", "--ttl", "60", "--params-file", str(file), code=NOT_ALLOWED)
    assert "secret_in_clear" in said.err
    holds_nothing_of(token, said.err)


# ── inspect and verify ──


def test_inspecting_shows_what_a_token_says_and_that_nothing_of_it_is_verified(issuer: Issuer) -> None:
    token = issuer.issue()
    said = issuer("inspect", "--token-file", "-", token=token)
    (row,) = said.rows
    assert row["unverified_claims"] == claims_of(token)
    assert row["verified"] is False
    assert "NOTHING IS VERIFIED" in said.err


def test_a_token_of_this_issuer_verifies(issuer: Issuer) -> None:
    file = issuer.directory / "token"
    file.write_text(issuer.issue())
    (row,) = issuer("verify", "--token-file", str(file)).rows
    assert row["valid"] is True
    assert row["insecure"] is False
    holds_nothing_of(file.read_text(), json.dumps(row))


def altered(token: str) -> str:
    signature = token.rpartition(".")[2]
    return token.replace(signature, ("A" if signature[0] != "A" else "B") + signature[1:])


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (altered, (), "signature_invalid"),
        (lambda token: token, ("--audience", "tollgate:staging."), "audience_mismatch"),
        (lambda token: token, ("--issuer", "https://another.example"), "issuer_untrusted"),
        (lambda token: token.rpartition(".")[0], (), "token_malformed"),
        (lambda _: "garbage", (), "token_malformed"),
    ],
    ids=["altered", "another audience", "another issuer", "two parts", "garbage"],
)
def test_a_token_that_is_not_good_is_told_by_its_reason(
    issuer: Issuer, change: Any, options: tuple[str, ...], reason: str
) -> None:
    token = change(issuer.issue())
    said = within(issuer.env, "token", "verify", "--token-file", "-", *options, stdin=token)
    assert said.code == FAILED
    (row,) = said.rows
    assert (row["valid"], row["reason"]) == (False, reason)
    assert reason in said.err
    if "." in token:
        holds_nothing_of(token, said.out + said.err)


def test_a_token_of_a_removed_key_does_not_verify(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    (made,) = within(issuer.env, "keys", "generate").rows
    token = issuer.issue()
    assert within(issuer.env, "keys", "retire", made["kid"], "--emergency").code == 0
    (row,) = issuer("verify", "--token-file", "-", code=FAILED, token=token).rows
    assert row["reason"] == "kid_unknown"


def test_a_development_token_verifies_only_where_it_is_asked_for(issuer: Issuer) -> None:
    secret = issuer.directory / "secret"
    secret.write_text("0123456789abcdef" * 4)
    secret.chmod(0o600)
    env = {"TOLLGATE_GATE__INSECURE_DEV_HS256": str(secret), "TOLLGATE_KAFKA__BOOTSTRAP": "localhost:1"}
    said = issuer("issue", "--job", "a/b", "--ttl", "60", "--insecure-dev-hs256", env=env)
    assert "INSECURE" in said.err
    assert secret.read_text() not in said.out + said.err
    token = said.out.strip()
    issuer("verify", "--token-file", "-", code=FAILED, token=token, env=env)
    (row,) = issuer("verify", "--token-file", "-", "--insecure-dev-hs256", token=token, env=env).rows
    assert (row["valid"], row["insecure"]) == (True, True)


@pytest.mark.parametrize("command", ["inspect", "verify", "revoke"])
@pytest.mark.parametrize(("content", "told"), [("", "no token"), ("one two", "more than one word")])
def test_a_token_file_holds_exactly_one_token(issuer: Issuer, command: str, content: str, told: str) -> None:
    said = within(issuer.env, "token", command, "--token-file", "-", stdin=content)
    assert (said.code, said.out) == (USAGE, "")
    assert told in said.err
    assert "two" not in said.err


@pytest.mark.parametrize(
    "words",
    [("token", "inspect", "--token-file"), ("token", "verify", "--token-file"), ("token", "revoke", "--token-file"),
     ("token", "revoke", "--jti"), ("token", "revoke", "--subject"), ("token", "revoke", "--jti", "x", "--reason"),
     ("emit", "a/b", "--token-file"), ("explain",), ("explain", "file", "-H")],
    ids=" ".join,
)  # fmt: skip
def test_a_token_given_as_an_argument_is_refused_and_not_repeated(issuer: Issuer, words: tuple[str, ...]) -> None:
    token = issuer.issue()
    said = within(issuer.env, *words, f"authorization: Bearer {token}" if words[-1] == "-H" else token)
    assert (said.code, said.out) == (USAGE, "")
    assert "was given a token" in said.err
    holds_nothing_of(token, said.err)


# ── revoke ──


@pytest.fixture(scope="module")
def revoker(issuer: Issuer, broker: str, tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    """The same issuer, with the topics of a deployment."""
    made = Issuer(tmp_path_factory.mktemp("revoker"))
    made.env = issuer.env | {
        "TOLLGATE_KAFKA__BOOTSTRAP": broker,
        "TOLLGATE_KAFKA__PREFIX": f"revoker{time.time_ns():x}.",
    }
    assert within(made.env, "topics", "create", "--lanes", "1").code == 0
    return made


def revocations(revoker: Issuer) -> list[Any]:
    records = read_topic(
        revoker.env["TOLLGATE_KAFKA__BOOTSTRAP"], revoker.env["TOLLGATE_KAFKA__PREFIX"] + "revocations"
    )
    table = Revocations()
    for record in records.records:
        assert table.apply(record.key, record.value) is None
    return table.entries()


def test_a_token_is_revoked_by_itself_and_its_record_holds_none_of_it(revoker: Issuer) -> None:
    token = revoker.issue()
    (row,) = revoker("revoke", "--token-file", "-", "--reason", "lost", token=token).rows
    assert (row["selector"], row["value"]) == ("jti", claims_of(token)["jti"])
    (entry,) = [each for each in revocations(revoker) if each.value == claims_of(token)["jti"]]
    assert entry.reason == "lost"
    assert entry.keep_until_s > time.time() + 90 * DAY_S  # no token it refuses is honoured longer
    holds_nothing_of(token, str(entry))


def test_a_subject_is_revoked_up_to_a_moment(revoker: Issuer) -> None:
    (row,) = revoker("revoke", "--subject", "service:gone", "--since", "10m").rows
    assert (row["selector"], row["value"]) == ("subject", "service:gone")
    assert abs(row["since_s"] - (time.time() - 600)) < 60


@pytest.mark.parametrize(
    "of_many",
    [("--subject", "a"), ("--subject-prefix", "a"), ("--issued",), ("--job", "a"), ("--class", "trigger")],
    ids=" ".join,
)
def test_as_of_now_takes_in_what_a_clock_ahead_of_ours_has_issued(revoker: Issuer, of_many: tuple[str, ...]) -> None:
    """The gate accepts a token that is dated ahead by the grace: one revoked as of now must not be among them."""
    before_s = int(time.time())
    (row,) = revoker("revoke", *of_many, "--issuer", "https://ahead.example", env={"TOLLGATE_GATE__GRACE_S": "45"}).rows
    assert before_s + 45 <= row["since_s"] <= time.time() + 45
    assert row["keep_until_s"] > row["since_s"] + 90 * DAY_S + 45


@pytest.mark.parametrize(
    ("arguments", "selector", "value"),
    [(("--subject-prefix", "service:ci-"), "subject_prefix", "service:ci-"), (("--issued",), "subject_prefix", ""),
     (("--job", "reports/nightly"), "job", "reports/nightly"), (("--class", "trigger"), "class", "trigger")],
    ids=["prefix", "issued", "job", "class"],
)  # fmt: skip
def test_many_tokens_are_revoked_by_one_record_up_to_a_moment(
    revoker: Issuer, arguments: tuple[str, ...], selector: str, value: str
) -> None:
    elsewhere = ("--issuer", f"https://{selector}{len(value)}.example")
    (row,) = revoker("revoke", *arguments, *elsewhere, "--since", "10m").rows
    assert (row["selector"], row["value"]) == (selector, value)
    assert abs(row["since_s"] - (time.time() - 600)) < 60
    assert row["keep_until_s"] > time.time() + 90 * DAY_S
    assert (elsewhere[1], selector, value) in {
        (each.issuer, each.selector, each.value) for each in revocations(revoker)
    }


@pytest.mark.parametrize(
    ("arguments", "selector", "value"),
    [(("--kid", "k-1"), "kid", "k-1"),
     (("--issuer-all", "--issuer", "https://gone.example"), "issuer", "https://gone.example")],
    ids=["kid", "issuer"],
)  # fmt: skip
def test_a_key_and_an_issuer_are_revoked_for_ever(
    revoker: Issuer, arguments: tuple[str, ...], selector: str, value: str
) -> None:
    (row,) = revoker("revoke", *arguments).rows
    assert (row["selector"], row["value"], row["keep_until_s"]) == (selector, value, 0)
    assert value in {each.value for each in revocations(revoker)}


@pytest.mark.parametrize(
    "arguments",
    [(), ("--jti", "a", "--kid", "b"), ("--jti", "a", "--issuer-all"), ("--jti", ""), ("--subject", ""), ("--kid", ""),
     ("--subject-prefix", ""), ("--job", ""), ("--issued", "--job", "a"), ("--class", "nobody"),
     ("--issuer-all", "--since", "10m"),
     ("--jti", "a", "--since", "10m"), ("--kid", "a", "--since", "10m"), ("--subject", "a", "--since", "yesterday"),
     ("--subject", "a", "--since", "2026-01-31T12:00:00")],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)  # fmt: skip
def test_what_is_not_exactly_one_thing_to_revoke_is_a_usage_error(revoker: Issuer, arguments: tuple[str, ...]) -> None:
    before = revocations(revoker)
    assert revoker("revoke", *arguments, code=USAGE).out == ""
    assert revocations(revoker) == before


def test_a_token_of_another_issuer_than_the_one_named_is_not_revoked(revoker: Issuer) -> None:
    token = revoker.issue()
    said = revoker(
        "revoke", "--token-file", "-", "--issuer", "https://another.example", code=USAGE, token=token
    )  # fmt: skip
    assert "another issuer" in said.err
