"""A valid world, seen from outside: one deployment, its issuers and jobs, running gates, and all that they write.

Nothing here may import the product: it is driven as installed processes and read by plain Kafka clients. Each test
states one difference from a trigger and a token that are good.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.rows.issuers import ORG, OURS, PARTNER, PARTNER_CAP_S, PARTNER_ORG, RULE, SUBJECT, Issuer
from tests.rows.jobs import JOBS, NIGHTLY
from tests.rows.outcomes import TIMEOUT_S, Outcome, Tail
from tests.rows.processes import TOLLGATE, Gate
from tests.rows.triggers import Trigger
from tests.support.canaries import Canaries
from tests.support.jose import public_jwk

COMMAND_TIMEOUT_S = 120
LANES = 4


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
        self.logs: list[Path] = []  # of doors
        self.canaries = Canaries()  # what commands printed or were given, and doors issued
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
        self.canaries.note(done.stdout, stdin, *dict(env or {}).values())
        assert code is None or done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done

    def rows(self, *words: str, code: int | None = 0) -> list[dict[str, Any]]:
        """What a command prints, an object a line."""
        return [json.loads(line) for line in self.tollgate(*words, "-o", "jsonl", code=code).stdout.splitlines()]

    def apply(self, kind: str, toml: str) -> str:
        """`jobs apply` or `trust apply`, and what it says. Gates follow within a second: `wait` for it."""
        file = self.directory / f"{kind}-{secrets.token_hex(4)}.toml"
        file.write_text(toml)
        return self.tollgate(kind, "apply", str(file)).stderr

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
