"""A valid world, seen from outside: one deployment, its issuers and jobs, running gates, and all that they write.

Nothing here may import the product: it is driven as installed processes and read by plain Kafka clients. Each test
states one difference from a trigger and a token that are good.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jwt
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

TOLLGATE = Path(sys.executable).parent / "tollgate"
TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120
LANES = 4

# The jobs of the world. A name says what is particular about the job; NIGHTLY is the plain one.
NIGHTLY, OTHER, THIRD = "rows/nightly", "rows/other", "rows/third"
STRICT, TOKEN_WINS, SENSITIVE = "rows/strict", "rows/token-wins", "rows/sensitive"
ONE_SHOT_ONLY, DISABLED, DEFAULTED, BY_EVENT_ID = (
    "rows/one-shot-only",
    "rows/disabled",
    "rows/defaulted",
    "rows/by-event-id",
)
UNREGISTERED = "rows/unregistered"  # within every trust rule, and not in the registry
FORBIDDEN = "payroll/run"  # registered, and in no trust rule
JOBS = f"""\
[jobs."{NIGHTLY}"]
[jobs."{OTHER}"]
[jobs."{THIRD}"]
[jobs."{FORBIDDEN}"]
[jobs."{DISABLED}"]
enabled = false
[jobs."{TOKEN_WINS}"]
on_param_conflict = "token_wins"
[jobs."{SENSITIVE}"]
sensitive = ["db_password"]
[jobs."{ONE_SHOT_ONLY}"]
accepts = ["one_shot"]
[jobs."{BY_EVENT_ID}"]
idempotency_from_ce_id = true
[jobs."{DEFAULTED}"]
on_param_conflict = "token_wins"
defaults = {{ a = "default", b = "default", c = "default" }}
[jobs."{STRICT}"]
defaults = {{ format = "pdf" }}
[jobs."{STRICT}".params_schema]
type = "object"
required = ["region"]
additionalProperties = false
properties = {{ region = {{ enum = ["eu", "us"] }}, format = {{ enum = ["pdf", "csv"] }}, pages = {{ type = "array", items = {{ type = "integer", maximum = 9 }} }} }}
"""

ABSENT: Any = object()  # as a change: the member is left out
OURS, PARTNER, RULE = "https://issuer.rows.test", "https://partner.rows.test", "rows/*"
ORG, PARTNER_ORG = "acme", "globex"
SUBJECT = "service:ci"
PARTNER_CAP_S = 3600


# ── tokens ──


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def changed(base: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """`base` with members changed; ABSENT removes one."""
    return {name: value for name, value in {**base, **(changes or {})}.items() if value is not ABSENT}


def es256(message: bytes, private: ec.EllipticCurvePrivateKey) -> bytes:
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def signed(header: bytes, claims: bytes, private: ec.EllipticCurvePrivateKey) -> str:
    """A correct signature over these very bytes, however odd they are."""
    message = f"{b64(header)}.{b64(claims)}"
    return f"{message}.{b64(es256(message.encode(), private))}"


def public_jwk(kid: str, private: ec.EllipticCurvePrivateKey, use: str = "sig") -> dict[str, Any]:
    public: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
    return {"kid": kid, "use": use, "alg": "ES256" if use == "sig" else "ECDH-ES"} | public


@dataclass(frozen=True)
class Issuer:
    """Who signs what it is told to, good or bad, fast."""

    iss: str
    kid: str
    private: ec.EllipticCurvePrivateKey = field(repr=False)
    audience: str
    org: str

    @property
    def header(self) -> dict[str, Any]:
        return {"alg": "ES256", "kid": self.kid, "typ": "trigger+jwt"}

    def claims(
        self, job: str | Sequence[str] = NIGHTLY, uses: str = "once", now_s: int | None = None
    ) -> dict[str, Any]:
        """Claims that are good in every respect, with a jti of their own."""
        now_s = int(time.time()) if now_s is None else now_s
        jobs = [job] if isinstance(job, str) else list(job)
        return {
            "iss": self.iss, "aud": self.audience, "sub": SUBJECT, "org_id": self.org, "iat": now_s, "nbf": now_s,
            "exp": now_s + 600, "jti": secrets.token_hex(16), "uses": uses,
            "authorization_details": [{"type": "job_trigger", "actions": ["106-Trigger"], "jobs": jobs}],
        }  # fmt: skip

    def token(
        self, job: str | Sequence[str] = NIGHTLY, uses: str = "once", *, header: Mapping[str, Any] | None = None,
        grant: Mapping[str, Any] | None = None, private: ec.EllipticCurvePrivateKey | None = None, **claims: Any,
    ) -> str:  # fmt: skip
        """A good token with one difference in its header, its claims or its grant, correctly signed."""
        good = self.claims(job, uses)
        good["authorization_details"] = [changed(good["authorization_details"][0], grant)]
        return signed(
            json.dumps(changed(self.header, header)).encode(),
            json.dumps(changed(good, claims)).encode(),
            private or self.private,
        )


# ── triggers ──


class Trigger(NamedTuple):
    """A record for the triggers topic, as any Kafka client would send it. A value that is no bytes is sent as JSON."""

    value: Any
    headers: Sequence[tuple[str, Any]] = ()
    key: bytes | str | None = None
    partition: int | None = None

    def encoded(self) -> bytes | None:
        return self.value if self.value is None or isinstance(self.value, bytes) else json.dumps(self.value).encode()


def plain(token: str, job: str | None = NIGHTLY, params: Any = ABSENT, **members: Any) -> Trigger:
    """Form 1: everything in the value."""
    return Trigger(
        changed({"job": job, "params": params, "token": token}, {"job": ABSENT} | members if job is None else members)
    )


def by_headers(token: str, job: str | None = NIGHTLY, params: Any = None, *more: tuple[str, Any]) -> Trigger:
    """Form 2: token and job in headers, the value is the params."""
    named = [("tollgate-job", job)] if job is not None else []
    return Trigger(params or {}, [("authorization", f"Bearer {token}"), *named, *more])


# ── what became of them ──


class DeadLetter(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    @property
    def stage(self) -> str:
        return self.headers["tollgate-stage"]

    @property
    def reason(self) -> str:
        return self.headers["tollgate-reason"]

    @property
    def detail(self) -> str:
        return self.headers["tollgate-detail"]


class Outcome(NamedTuple):
    """Everything the gates wrote about one trigger."""

    trigger_id: str
    receipt: dict[str, Any]
    jobs: tuple[dict[str, Any], ...]
    dead_letters: tuple[DeadLetter, ...]
    audit: tuple[dict[str, Any], ...]

    @property
    def verdict(self) -> str:
        """`accepted`, `duplicate` or the reason of the refusal; and the records agree about it."""
        outcome, reason = self.receipt["outcome"], self.receipt["reason"]
        (presented,) = self.audit
        assert (presented["outcome"], presented["reason"], presented["run_id"]) == (outcome, reason, self.run_id)
        assert len(self.jobs) == (outcome == "accepted"), self
        assert [letter.reason for letter in self.dead_letters] == ([reason] if outcome == "rejected" else []), self
        assert all(letter.stage == presented["stage"] for letter in self.dead_letters)
        return reason or outcome

    @property
    def job(self) -> dict[str, Any]:
        (job,) = self.jobs
        return job

    @property
    def dead_letter(self) -> DeadLetter:
        (letter,) = self.dead_letters
        return letter

    @property
    def stage(self) -> str | None:
        return self.audit[0]["stage"]

    @property
    def run_id(self) -> str | None:
        return self.receipt["run_id"]

    @property
    def params(self) -> dict[str, Any]:
        return self.job["params"]


class Tail:
    """Reads jobs, receipts, dead letters and audit under read_committed, on a thread of its own, from their start."""

    def __init__(self, bootstrap: str, prefix: str, lanes: int) -> None:
        self.receipts: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.jobs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.dead_letters: dict[str, list[DeadLetter]] = defaultdict(list)
        self.audit: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.failure: Exception | None = None
        self._came = threading.Condition()
        self._stop = threading.Event()
        self._take = {
            prefix + "receipts": self._receipt, prefix + "jobs": self._job,
            prefix + "dead-letters": self._dead_letter, prefix + "audit": self._audit,
        }  # fmt: skip
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "rows",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 50,
            }
        )
        self._consumer.assign(
            [TopicPartition(topic, lane, OFFSET_BEGINNING) for topic in self._take for lane in range(lanes)]
        )
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def outcomes(self, trigger_ids: Sequence[str], timeout_s: float = TIMEOUT_S) -> list[Outcome]:
        """What became of each, once it has been decided. AssertionError when one was not decided in time."""
        missing = set(trigger_ids)
        with self._came:
            deadline = time.monotonic() + timeout_s
            while True:
                missing = {trigger_id for trigger_id in missing if not self._settled(trigger_id)}
                if not missing:
                    break
                before = self._count()
                self._came.wait(1.0)
                if self.failure is not None:
                    raise self.failure
                if self._count() != before:
                    deadline = max(deadline, time.monotonic() + timeout_s / 2)  # it goes on: let it
                assert time.monotonic() < deadline, f"{len(missing)} not decided in time: {sorted(missing)[:5]}"
            return [
                Outcome(
                    trigger_id, self.receipts[trigger_id][0], tuple(self.jobs.get(trigger_id, ())),
                    tuple(self.dead_letters.get(trigger_id, ())), tuple(self.audit[trigger_id]),
                )
                for trigger_id in trigger_ids
            ]  # fmt: skip

    def _count(self) -> int:
        return len(self.receipts) + len(self.audit)

    def _settled(self, trigger_id: str) -> bool:
        """A transaction's markers come to the topics one by one: all of its records must be here."""
        receipts = self.receipts.get(trigger_id)
        if not receipts or trigger_id not in self.audit:
            return False
        match receipts[0]["outcome"]:
            case "accepted":
                return trigger_id in self.jobs
            case "rejected":
                return trigger_id in self.dead_letters
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                messages = self._consumer.consume(5_000, timeout=0.1)
                with self._came:
                    for message in messages:
                        if message.error() is not None:
                            raise KafkaException(message.error())
                        self._take[message.topic()](message)
                    if messages:
                        self._came.notify_all()
            except Exception as error:  # raised to whoever waits
                self.failure = error
                return

    def _receipt(self, message: Any) -> None:
        receipt = json.loads(message.value())
        self.receipts[receipt["trigger_id"]].append(receipt)

    def _job(self, message: Any) -> None:
        job = json.loads(message.value())
        self.jobs[job["trigger"]["id"]].append(job)

    def _dead_letter(self, message: Any) -> None:
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in message.headers()}
        trigger_id = f"{headers['tollgate-partition']}-{headers['tollgate-offset']}"
        self.dead_letters[trigger_id].append(DeadLetter(message.key(), message.value(), headers))

    def _audit(self, message: Any) -> None:
        for presented in json.loads(message.value())["presentations"]:
            self.audit[presented["trigger_id"]].append(presented)


# ── processes ──


class Gate:
    """A gate as an operator would start it; may be stopped, killed and started again."""

    def __init__(self, name: str, directory: Path, env: Mapping[str, str], workers: int) -> None:
        self.name, self.workers = name, workers
        self.state_dir, self.log_file = directory / f"{name}-state", directory / f"{name}.log"
        self._directory = directory
        self._env = {**env, "TOLLGATE_GATE__STATE_DIR": str(self.state_dir)}
        self.ports: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        port = _free_ports(self.workers)
        self.ports = [port + number for number in range(self.workers)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [TOLLGATE, "gate", "--workers", str(self.workers)], cwd=self._directory, stdout=log, stderr=log,
                env=self._env | {"TOLLGATE_TELEMETRY__PORT": str(port)},
            )  # fmt: skip
        return self

    def wait_ready(self, timeout_s: float = TIMEOUT_S) -> Self:
        """Until every worker has restored its lanes."""
        deadline = time.monotonic() + timeout_s
        for port in self.ports:
            while not _answers_ok(f"http://127.0.0.1:{port}/readyz"):
                assert self.process is not None
                if self.process.poll() is not None:
                    assert "telemetry port" in self.log_tail(), f"gate {self.name} ended: {self.log_tail()}"
                    return self.start().wait_ready(deadline - time.monotonic())  # somebody was faster to take a port
                assert time.monotonic() < deadline, f"gate {self.name} is not ready: {self.log_tail()}"
                time.sleep(0.1)
        return self

    def stop(self) -> int | None:
        """In order, as a service manager would. Returns its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def kill(self) -> None:
        """SIGKILL. Of one worker only: those of several are killed by the kernel a moment later."""
        assert self.workers == 1
        assert self.process is not None
        self.process.kill()
        self.process.wait(40)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def log_tail(self) -> str:
        return self.log()[-2_000:]

    def events(self) -> list[dict[str, Any]]:
        """What it logged, over all its lives."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{") and line.endswith("}")]


class World:
    """One deployment with its own topics, keys, trust and jobs. Enter it, then `start_gate`."""

    def __init__(self, bootstrap: str, directory: Path, lanes: int = LANES, **settings: str) -> None:
        self.bootstrap, self.directory, self.lanes = bootstrap, directory, lanes
        self.prefix = f"rows{secrets.token_hex(3)}."
        self.audience = f"tollgate:{self.prefix}"
        self.keys_dir, self.jwks_file = directory / "keys", directory / "jwks.json"
        sealing_file = directory / "sealing.json"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
        self.env = clean | {
            "TOLLGATE_KAFKA__BOOTSTRAP": bootstrap,
            "TOLLGATE_KAFKA__PREFIX": self.prefix,
            "TOLLGATE_ISSUER__ISSUER": OURS,
            "TOLLGATE_ISSUER__KEYS_DIR": str(self.keys_dir),
            "TOLLGATE_ISSUER__JWKS_FILE": str(self.jwks_file),
            "TOLLGATE_ISSUER__ORG_ID": ORG,
            "TOLLGATE_ISSUER__SUBJECT": SUBJECT,
            "TOLLGATE_GATE__SEALING_KEY": str(sealing_file),
            "TOLLGATE_TELEMETRY__LOG_FORMAT": "json",
            **{f"TOLLGATE_{name.upper()}": value for name, value in settings.items()},
        }
        self.sealing_private = ec.generate_private_key(ec.SECP256R1())  # ops' own; no gate has it
        sealing_file.write_text(json.dumps(public_jwk("ops-1", self.sealing_private, use="enc")))
        self.gates: list[Gate] = []
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "linger.ms": 2, "acks": "all", "message.max.bytes": 2_000_000}
        )

    def __enter__(self) -> Self:
        try:
            self._found()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _found(self) -> None:
        self.tollgate("topics", "create", "--lanes", str(self.lanes), "--replication-factor", "1")
        self.tollgate("keys", "generate")
        (pem,) = self.keys_dir.glob("*.pem")
        private = load_pem_private_key(pem.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self.ours = Issuer(OURS, pem.stem, private, self.audience, ORG)
        self.partner = Issuer(PARTNER, "partner-1", ec.generate_private_key(ec.SECP256R1()), self.audience, PARTNER_ORG)
        partner_jwks = self.directory / "partner.json"
        partner_jwks.write_text(json.dumps({"keys": [public_jwk(self.partner.kid, self.partner.private)]}))
        self.apply("trust", self._trust(OURS, self.jwks_file, ORG) + self._trust(
            PARTNER, partner_jwks, PARTNER_ORG, PARTNER_CAP_S))  # fmt: skip
        self.apply("jobs", JOBS)
        self.tail = Tail(self.bootstrap, self.prefix, self.lanes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for gate in self.gates:
            gate.stop()
        if hasattr(self, "tail"):
            self.tail.close()
        del self._producer  # which closes it

    @staticmethod
    def _trust(iss: str, jwks: Path, org: str, cap_s: int = 90 * 86_400) -> str:
        return (
            f'[trust."{iss}"]\njwks = "{jwks}"\nalgorithms = ["ES256"]\norgs = ["{org}"]\nclasses = ["trigger", "user", "host"]\n'
            f'subjects = ["service:*", "svc:*", "u:*", "host:*"]\njobs = ["{RULE}"]\nmax_lifetime_s = {cap_s}\n'
        )

    def topic(self, name: str) -> str:
        return self.prefix + name

    # ── the program ──

    def tollgate(
        self, *words: str, code: int | None = 0, env: Mapping[str, str] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; `code` is the exit code it must have, None any."""
        done = subprocess.run(
            [TOLLGATE, *words], env=self.env | dict(env or {}), cwd=self.directory, capture_output=True, text=True,
            input=stdin, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done

    def rows(self, *words: str, code: int | None = 0) -> list[dict[str, Any]]:
        """What a command prints, an object a line."""
        return [json.loads(line) for line in self.tollgate(*words, "-o", "jsonl", code=code).stdout.splitlines()]

    def apply(self, kind: str, toml: str) -> None:
        """`jobs apply` or `trust apply`. Gates follow within a second: `wait` for it."""
        file = self.directory / f"{kind}-{secrets.token_hex(4)}.toml"
        file.write_text(toml)
        self.tollgate(kind, "apply", str(file))

    def issue(self, job: str = NIGHTLY, *words: str) -> str:
        """A token by `tollgate token issue`."""
        return self.tollgate("token", "issue", "--job", job, "--ttl", "10m", *words).stdout.strip()

    def start_gate(self, name: str = "gate", workers: int = 2) -> Gate:
        gate = Gate(name, self.directory, self.env, workers)
        self.gates.append(gate)
        return gate.start()

    # ── emitting ──

    def send_all(self, triggers: Iterable[Trigger], producer: Producer | None = None) -> list[str]:
        """Publish, by confluent-kafka, which partitions by CRC32. Returns the triggers' ids, in their order."""
        producer = producer or self._producer
        ids: list[str] = []
        failures: list[Any] = []

        def acknowledged(number: int) -> Callable[[Any, Any], None]:
            def delivered(error: Any, message: Any) -> None:
                if error is not None:
                    failures.append(error)
                else:
                    ids[number] = f"{message.partition()}-{message.offset()}"

            return delivered

        for number, trigger in enumerate(triggers):
            ids.append("")
            options: dict[str, Any] = {} if trigger.partition is None else {"partition": trigger.partition}
            while True:
                try:
                    producer.produce(
                        self.topic("triggers"), trigger.encoded(), key=trigger.key, headers=list(trigger.headers),
                        on_delivery=acknowledged(number), **options,
                    )  # fmt: skip
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        assert producer.flush(TIMEOUT_S) == 0
        assert not failures, failures[0]
        return ids

    def send(
        self,
        value: Any,
        headers: Sequence[tuple[str, Any]] = (),
        key: bytes | str | None = None,
        partition: int | None = None,
    ) -> str:
        (trigger_id,) = self.send_all([Trigger(value, headers, key, partition)])
        return trigger_id

    def outcomes(self, trigger_ids: Sequence[str], timeout_s: float = TIMEOUT_S) -> list[Outcome]:
        return self.tail.outcomes(trigger_ids, timeout_s)

    def ids_of(self, correlation_ids: Iterable[str], timeout_s: float = TIMEOUT_S) -> list[str]:
        """The ids of triggers whose emitter was not told them, by what their receipts echo."""
        wanted, deadline = list(correlation_ids), time.monotonic() + timeout_s
        while True:
            echoed = {receipts[0]["correlation_id"]: name for name, receipts in list(self.tail.receipts.items())}
            if set(wanted) <= echoed.keys():
                return [echoed[name] for name in wanted]
            assert time.monotonic() < deadline, f"no receipt echoes {set(wanted) - echoed.keys()}"
            time.sleep(0.1)

    def present(self, *triggers: Trigger) -> list[Outcome]:
        """Publish them all at once, and see what becomes of each."""
        return self.outcomes(self.send_all(triggers))

    def present_one(self, trigger: Trigger) -> Outcome:
        (outcome,) = self.present(trigger)
        return outcome

    def present_in_turn(self, *triggers: Trigger) -> list[Outcome]:
        """Each is sent once the one before it was decided."""
        return [self.present_one(trigger) for trigger in triggers]

    def until(self, expected: str, make: Callable[[], Trigger], timeout_s: float = TIMEOUT_S) -> Outcome:
        """Present new triggers until one has the verdict expected: what was applied has come to every gate's lanes."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self.present(*(make()._replace(partition=lane) for lane in range(self.lanes)))
            if all(outcome.verdict == expected for outcome in seen):
                return seen[0]
            assert time.monotonic() < deadline, f"still {[outcome.verdict for outcome in seen]} instead of {expected}"
            time.sleep(0.2)

    def run_jobs(self, run_id: str) -> list[dict[str, Any]]:
        """Every job of a run seen so far."""
        return [job for jobs in list(self.tail.jobs.values()) for job in jobs if job["run_id"] == run_id]


# ── leaves ──


def _answers_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _free_ports(count: int) -> int:
    """The first of so many consecutive ports that nobody listens on, below those that clients are given."""
    while True:
        port = 10_000 + secrets.randbelow(9_000)
        if all(_is_free(port + more) for more in range(count)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as asked:
        try:
            asked.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
