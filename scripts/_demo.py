"""What `scripts/demo` runs: drives `tollgate` and foreign Kafka clients from outside, and checks every verdict."""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jwt
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.stopping import Interrupted, interrupt_on_signals
from app.local import tether

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 150
NIGHTLY, RESIZE, BACKUP = "reports/nightly", "images/resize", "database/backup"
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 130)


class Case(NamedTuple):
    """One trigger: what is sent, by whom, and what must become of it."""

    what: str
    client: str
    expected: str  # an outcome, or a reason
    send: Callable[[], str]


# ── the stack ──


@contextmanager
def stack(state: Path) -> Iterator[None]:
    """`tollgate up` in the background; its settings are in our environment while it runs."""
    for name in [name for name in os.environ if name.startswith("TOLLGATE_")]:
        del os.environ[name]
    # Tethered: it goes, and with it what it started, should this script be killed before it can stop it.
    command = ["tollgate", "up", "--state", state, "--lanes", "4", "--port", "0"]
    up = subprocess.Popen(
        [sys.executable, tether.__file__, str(os.getpid()), "/usr/bin/env", *command],
        cwd=state, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        said = up.stderr
        for line in said:
            if line.startswith("Everything is up"):
                break
            out.print(Text("  " + line.rstrip(), style="dim"))
            if time.monotonic() > deadline:
                sys.exit(f"demo: `tollgate up` took longer than {READY_TIMEOUT_S} s")
        if not (state / "env").exists():
            sys.exit("demo: `tollgate up` failed; the lines above say why")
        for line in (state / "env").read_text().splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            if name != "PATH":  # ours has it already
                os.environ[name] = shlex.split(value)[0]
        yield
    except BaseException:
        print("demo: stopping everything that was started ...", file=sys.stderr, flush=True)
        raise
    finally:
        stop(up)
    if up.returncode != 0:
        sys.exit(f"demo: `tollgate up` ended with {up.returncode}")


def stop(up: subprocess.Popen[str]) -> None:
    up.send_signal(signal.SIGINT)
    try:
        up.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        up.kill()
        up.communicate()


def tollgate(*arguments: str, token: str | None = None, codes: tuple[int, ...] = (0,)) -> str:
    """Run the program as a person would; a token goes by the environment, never by an argument."""
    env = os.environ | ({"TOLLGATE_TOKEN": token} if token else {})
    done = subprocess.run(["tollgate", *arguments], env=env, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(f"demo: tollgate {shlex.join(arguments)} exited {done.returncode}: {done.stderr}")
    return done.stdout


def rows(*arguments: str, codes: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tollgate(*arguments, "-o", "jsonl", codes=codes).splitlines()]


# ── tokens: honest ones by `tollgate token issue`, the others by hand ──


def issue(count: int, job: str, *more: str) -> list[str]:
    return tollgate("token", "issue", "--job", job, "--ttl", "10m", "--count", str(count), *more).split()


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def tampered(token: str) -> str:
    """The claims say another job now, under the old signature."""
    header, _, signature = token.split(".")
    claims = claims_of(token)
    claims["authorization_details"][0]["jobs"] = [BACKUP]
    altered = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{header}.{altered}.{signature}"


def forged(token: str, **changes: Any) -> str:
    """Everything right but the key: signed by a stranger under our kid."""
    stranger = ec.generate_private_key(ec.SECP256R1())
    header = jwt.get_unverified_header(token)
    return jwt.encode(claims_of(token) | changes, stranger, "ES256", {"kid": header["kid"], "typ": header["typ"]})


def issued_long_ago(job: str) -> str:
    """An honest token of our own issuer, of yesterday."""
    from app import config
    from app.issuer.keystore import Keystore
    from app.issuer.mint import mint

    settings = config.load()
    store = Keystore(settings.issuer.keys_dir, settings.issuer.jwks_file)
    request = token_request(settings, job)
    minted = mint(request, store.signing_key(int(time.time())), int(time.time()) - 86_400)
    return minted.token


def token_request(settings: Any, job: str) -> Any:
    from app.issuer.mint import TriggerTokenRequest

    issuer = settings.issuer
    return TriggerTokenRequest(
        issuer=issuer.issuer, audience=settings.audience, subject=issuer.subject, org_id=issuer.org_id,
        jobs=(job,), ttl_s=600, uses="once",
    )  # fmt: skip


# ── emitters ──


def by_tollgate(token: str, job: str, *more: str) -> Callable[[], str]:
    return lambda: json.loads(tollgate("emit", job, *more, "-o", "jsonl", token=token))["trigger_id"]


def by_example(token: str, job: str, params: str) -> Callable[[], str]:
    """scripts/examples/emit.py: confluent-kafka, which partitions by CRC32."""

    def send() -> str:
        script = [sys.executable, ROOT / "scripts/examples/emit.py", os.environ["TOLLGATE_BOOTSTRAP"], job, params]
        env = os.environ | {"TOLLGATE_TOKEN": token}
        return subprocess.run(script, env=env, capture_output=True, text=True, check=True).stdout.strip()

    return send


def raw(
    value: bytes | None, headers: dict[str, str | bytes] | None = None, key: str | None = None
) -> Callable[[], str]:
    """Any bytes, by confluent-kafka: what a careless or hostile emitter sends."""

    def send() -> str:
        producer = Producer({"bootstrap.servers": os.environ["TOLLGATE_BOOTSTRAP"], "acks": "all", "linger.ms": 0})
        placed: list[str] = []
        producer.produce(
            "tollgate.triggers", value, key, headers=headers or {},
            on_delivery=lambda _error, message: placed.append(f"{message.partition()}-{message.offset()}"),
        )  # fmt: skip
        producer.flush(15)
        return placed[0]

    return send


def plain(token: str, job: str, key: str | None = None, **params: Any) -> Callable[[], str]:
    value = {"job": job, "params": params, "token": token} | ({"idempotency_key": key} if key else {})
    return raw(json.dumps(value).encode(), key=key)


# ── the story ──


def first_round() -> list[Case]:
    with ThreadPoolExecutor(2) as pool:  # each is a start of the program
        waiting = [
            pool.submit(issue, 2, NIGHTLY, "--param", "region=eu"),
            pool.submit(issue, 3, NIGHTLY),
            pool.submit(issue, 2, RESIZE, "--uses", "many"),
            pool.submit(issue, 1, BACKUP),
        ]
    (nightly, fixed), (narrow, free, doomed), (webhook, renewed), (backup,) = (each.result() for each in waiting)
    remembered.update(nightly=nightly, webhook=webhook, renewed=renewed, doomed=doomed)
    bearer = {"authorization": f"Bearer {nightly}", "tollgate-job": NIGHTLY}
    foreign = "confluent-kafka"
    return [
        Case("good: a one-shot token", "tollgate emit", "accepted", by_tollgate(nightly, NIGHTLY)),
        Case("good: a webhook with a key", foreign, "accepted", plain(webhook, RESIZE, "photo-1", width=640)),
        Case("good: headers and plain parameters", "examples/emit.py", "accepted", by_example(backup, BACKUP, "{}")),
        Case("expired: issued yesterday", foreign, "token_expired",
             plain(issued_long_ago(NIGHTLY), NIGHTLY, region="eu")),
        Case("forged: a stranger's key under our kid", foreign, "signature_invalid", plain(forged(nightly), NIGHTLY)),
        Case("forged: an issuer nobody trusts", foreign, "issuer_untrusted",
             plain(forged(nightly, iss="https://evil.example"), NIGHTLY)),
        Case("over-privileged: a job the token does not grant", foreign, "job_not_authorized",
             plain(narrow, BACKUP)),
        Case("tampered: the token's job exchanged", foreign, "signature_invalid", plain(tampered(nightly), BACKUP)),
        Case("tampered: a parameter the token fixes", foreign, "param_conflict",
             plain(fixed, NIGHTLY, region="us")),
        Case("malformed: not JSON", foreign, "json_malformed", raw(b'{"job": oops')),
        Case("malformed: JSON with a member twice", foreign, "json_duplicate_member", raw(b'{"job":"a","job":"b"}')),
        Case("malformed: no value at all", foreign, "value_missing", raw(None)),
        Case("malformed: parameters that are no object", foreign, "json_malformed", raw(b"[1]", bearer)),
        Case("no token", foreign, "token_missing", raw(json.dumps({"job": NIGHTLY, "params": {}}).encode())),
        Case("parameters the job's schema refuses", foreign, "payload_invalid",
             plain(free, NIGHTLY, region="mars")),
    ]  # fmt: skip


def second_round() -> list[Case]:
    nightly, webhook, doomed = (remembered[name] for name in ("nightly", "webhook", "doomed"))
    foreign = "confluent-kafka"
    tollgate("token", "revoke", "--jti", claims_of(doomed)["jti"], "--reason", "demo")
    time.sleep(0.5)  # the gate's view of revocations is confirmed every second at the latest
    return [
        Case("repeated: the same request again", "tollgate emit", "duplicate", by_tollgate(nightly, NIGHTLY)),
        Case("repeated: the webhook's key again", foreign, "duplicate", plain(webhook, RESIZE, "photo-1", width=640)),
        Case("replayed: the used token for another request", foreign, "token_already_used",
             plain(nightly, NIGHTLY, region="eu", format="csv")),
        Case("the webhook's key for another request", foreign, "idempotency_key_reused",
             plain(remembered["renewed"], RESIZE, "photo-1", width=9000)),
        Case("revoked a moment ago", foreign, "token_revoked", plain(doomed, NIGHTLY, region="eu")),
    ]  # fmt: skip


remembered: dict[str, str] = {}


def judged(cases: list[Case]) -> list[tuple[Case, dict[str, Any]]]:
    """Send all, then read what became of each."""
    ids = [case.send() for case in cases]
    asked = [word for trigger_id in ids for word in ("--wait", trigger_id)]
    receipts = rows("receipts", *asked, "--timeout", "30", codes=(0, 3))
    return list(zip(cases, receipts, strict=True))


def show_verdicts(title: str, results: list[tuple[Case, dict[str, Any]]]) -> int:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "sent", "by", "trigger", "verdict"):
        table.add_column(name)
    wrong = 0
    for case, receipt in results:
        verdict = receipt["reason"] or receipt["outcome"]
        right = verdict == case.expected
        wrong += not right
        style = {"accepted": "green", "duplicate": "yellow"}.get(receipt["outcome"], "red")
        table.add_row(
            Text("✓", "green") if right else Text("✗", "bold red"), case.what, Text(case.client, "dim"),
            Text(receipt["trigger_id"], "dim"), Text(verdict + ("" if right else f", expected {case.expected}"), style),
        )  # fmt: skip
    out.print(table)
    out.print()
    return wrong


def show_outputs(results: list[tuple[Case, dict[str, Any]]]) -> int:
    accepted = {receipt["run_id"] for _, receipt in results if receipt["outcome"] == "accepted"}
    refused = {receipt["trigger_id"] for _, receipt in results if receipt["outcome"] == "rejected"}
    jobs, letters = rows("jobs", "tail"), rows("dead-letters", "list")
    out.print(Text(f"Jobs: one for each accepted trigger ({len(jobs)})", "bold"))
    for job in jobs:
        out.print(
            f"  {job['run_id']}  [green]{job['job']}[/]  {json.dumps(job['params'])}  for {job['identity']['subject']}"
        )
    out.print()
    out.print(Text(f"Dead letters: the refused, without their tokens ({len(letters)})", "bold"))
    for letter in letters:
        out.print(f"  {letter['trigger_id']:<6} [red]{letter['reason']:<24}[/]", Text(letter["detail"] or "", "dim"))
    first = next(receipt["run_id"] for _, receipt in results if receipt["outcome"] == "accepted")
    out.print()
    out.print(Text("The audit trail of the first run", "bold"))
    out.print(Text(tollgate("audit", "--run", first, "-o", "table"), "cyan"))
    chains = rows("audit", "verify")
    verdict = "[red]BROKEN[/]" if any(chain["verdict"] == "broken" for chain in chains) else "none altered"
    out.print(f"Audit: {sum(chain['records'] for chain in chains)} records in {len(chains)} chains, {verdict}\n")
    wrong = 0
    for what, found, expected in (
        ("jobs", sorted(job["run_id"] for job in jobs), sorted(accepted)),
        ("dead letters", sorted(letter["trigger_id"] for letter in letters), sorted(refused)),
        ("broken chains", [chain["lane"] for chain in chains if chain["verdict"] == "broken"], []),
    ):
        if found != expected:
            wrong += 1
            out.print(Text(f"✗ {what}: {found}, expected {expected}", "bold red"))
    return wrong


def main() -> None:
    interrupt_on_signals()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tollgate-demo-") as directory:
        out.print(Text("Starting everything on this machine", "bold"))
        with stack(Path(directory)):
            out.print("")
            results = judged(first_round())
            wrong = show_verdicts("First round: what each trigger became", results)
            again = judged(second_round())
            wrong += show_verdicts("Second round: the same again, and what a thief would try", again)
            wrong += show_outputs(results + again)
            out.print(Text("Stopping everything", "bold"))
    took = f"{time.monotonic() - started:.0f} s"
    if wrong:
        out.print(Text(f"{wrong} verdict(s) differ from what was expected ({took})", "bold red"))
        sys.exit(1)
    out.print(Text(f"Every verdict was as expected ({took}). Next: tollgate up", "bold green"))


if __name__ == "__main__":
    try:
        main()
    except Interrupted as told:
        sys.exit(told.code)
