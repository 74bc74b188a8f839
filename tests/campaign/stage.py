"""A stage: one deployment on the campaign's cluster, under load, with its gates, journals, ledger and reader.

Rows strike a stage; when they are done it comes to rest and is judged. Each has topics of its own, so that what is
found is found in the rows that were played on it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app.local import tether
from tests.campaign import inside
from tests.campaign.case import Evidence, GateTraces, Strike
from tests.campaign.journals import Journals
from tests.campaign.load import Load
from tests.campaign.points import Point
from tests.campaign.watch import Watcher
from tests.support import gates
from tests.support.founding import found
from tests.support.gates import GateProcess
from tests.support.issuer import JOB, OtherIssuer
from tests.support.proxy import KafkaProxy
from tests.support.reader import held_back

ROOT = Path(__file__).resolve().parents[2]
GATE = (sys.executable, "-m", "tests.campaign.gate")
LANES = 12
UP_S = 60.0
REST_S = 60.0  # by when everything sent is answered, after the last fault (L2)
WATCHED = ("jobs", "receipts", "dead-letters", "audit", "idempotency")
OVERDUE_S = 3.0  # a transaction that nobody ends is aborted so long after its timeout (L1)
SENTINELS_S = 5.0  # by when one more trigger in each lane is answered, at rest (I8)
LEDGER = "ledger.tsv"
TICK_S = 0.05


class Interrupted(Exception):  # noqa: N818
    """Ctrl-C: what is there is judged."""


@dataclass
class Fault:
    """One injection. It counts when the journals or logs show that it took effect."""

    row: str
    kind: str
    at: float
    effective: bool = False
    lanes: list[int] = field(default_factory=list)  # without an owner until they are taken again
    recovered_s: list[float] = field(default_factory=list)
    detail: str = ""


CHECKPOINT_LOST = "a lane's checkpoint lost"


class CampaignGate(GateProcess):
    """A gate with the campaign's journal in it."""

    def __init__(self, name: str, directory: Path, env: dict[str, str], journals: Journals) -> None:
        self.journal_file = directory / f"{name}.journal"
        self._orders = directory / f"{name}.orders"
        env = env | {
            inside.JOURNAL: str(self.journal_file), inside.ARM: str(self._orders), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        # Tethered: it goes with the thread that plays its stage, however that ends.
        command = (sys.executable, tether.__file__, str(os.getpid()), *GATE)
        super().__init__(name, directory, env, command)
        self._journals = journals
        self.state_dir = Path(self._env["TOLLGATE_GATE__STATE_DIR"])
        self.expected_down = False

    @property
    def run(self) -> str:
        return f"{self.name}/{self.pid}"

    @property
    def lanes(self) -> list[int]:
        self._journals.update()
        return self._journals.lanes_of(self.run) if self.alive else []

    def start(self, order: Mapping[str, Any] | None = None) -> None:
        """`order`: armed from the first moment on."""
        self._orders.unlink(missing_ok=True)
        if order is not None:
            self._orders.write_text(json.dumps(order))
        super().start()
        self.expected_down = False

    def arm(self, point: Point, action: str, passes: int = 1) -> bool:
        return self.order({"point": point, "action": action, "pass": passes})

    def order(self, order: Mapping[str, Any]) -> bool:
        """False when the gate is not far enough to listen."""
        self._journals.update()
        if not self.alive or not any(event["run"] == self.run for event in self._journals.other["start"]):
            return False
        fresh = self._orders.with_suffix(".new")
        fresh.write_text(json.dumps(order))
        fresh.rename(self._orders)
        self.signal(signal.SIGUSR1)
        return True

    def kill(self) -> None:
        self.expected_down = True
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self.wait()


class Stage:
    """`bootstrap` is where the load and the reader connect; gates go through proxies of their own when `proxied`."""

    def __init__(
        self, bootstrap: str, name: str, directory: Path, *, seed: int, rate: int = 500, gate_count: int = 3,
        lanes: int = LANES, session_ms: int = 3_000, proxied: bool = False, load: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print, plant: str = "", settle_s: float = 30.0, rest_s: float = REST_S,
        **settings: str,
    ) -> None:  # fmt: skip
        self.bootstrap, self.name, self.lanes, self.session_ms = bootstrap, name, lanes, session_ms
        self.directory = directory
        self.prefix = f"c{os.getpid() % 10_000}{name}."
        self.dice = random.Random(f"{seed}/{name}")
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self.broker_logs: list[Path] = []
        self.counts: dict[str, int] = {}  # of rows whose faults are too many to note one by one
        self.broken: list[str] = []  # found by a row itself
        self.say = say
        self.journals = Journals(directory)
        self.gates: list[CampaignGate] = []
        self.proxies: list[KafkaProxy] = []
        self.issuer = OtherIssuer(self.prefix)
        self.settle_s, self.rest_s, self._plant = settle_s, rest_s, plant
        self.drained_s: float | None = None
        self._stack = ExitStack()
        self._gate_count, self._proxied, self._rate, self._seed = gate_count, proxied, rate, seed
        self._load_options = dict(load or {})
        # Deadlines below the session's: a request that is never answered must not stop a lane for long.
        self._settings = {
            "gate__session_timeout_ms": str(session_ms), "kafka__request_timeout_ms": "8000",
            "gate__transaction_timeout_ms": "10000",
        } | settings  # fmt: skip
        self.overdue_s = int(self._settings["gate__transaction_timeout_ms"]) / 1_000 + OVERDUE_S
        self.began_at = time.monotonic()
        self._faults_file = directory / "faults.jsonl"
        self._lock = threading.Lock()

    # ── life ──

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        found(self.bootstrap, self.prefix, self.lanes, self.issuer, self.directory / "operator", (JOB, JOB[2:]))
        try:
            self.watcher = self._stack.enter_context(Watcher(self.bootstrap, self.prefix, WATCHED))
            for _ in range(self._gate_count):
                self.add_gate()
            self.load = Load(
                self.bootstrap, f"{self.prefix}triggers", self.lanes, self.issuer, self.directory / LEDGER,
                rate=self._rate, seed=self._seed, backlog=lambda: self.load.sent - self.watcher.answered,
                backlog_max=max(2_000, 10 * self._rate),
                **self._load_options,
            )  # fmt: skip
            self._stack.enter_context(self.load)
            self.until_all_decide("the start", timeout_s=max(UP_S, self.settle_s))
        except BaseException:
            self._stack.close()
            raise
        self.began_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add_gate(self) -> CampaignGate:
        """One more gate, started."""
        bootstrap = self.bootstrap
        if self._proxied:
            proxy = self._stack.enter_context(KafkaProxy(self.bootstrap))
            self.proxies.append(proxy)
            bootstrap = proxy.bootstrap
        env = gates.environment(bootstrap, self.prefix, **self._settings) | {inside.PLANT: self._plant}
        gate = CampaignGate(f"gate-{len(self.gates)}", self.directory, env, self.journals)
        self.gates.append(gate)
        self._stack.callback(self._end, gate)
        gate.start()
        return gate

    @staticmethod
    def _end(gate: CampaignGate) -> None:
        if gate.alive:
            gate.kill()

    # ── what rows ask ──

    def note(self, fault: Fault) -> Fault:
        """Keep a fault, here and on disk."""
        with self._lock:
            self.faults.append(fault)
            with self._faults_file.open("a") as file:
                file.write(json.dumps(vars(fault)) + "\n")
        return fault

    def until(self, holds: Callable[[], Any], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(TICK_S)
        return True

    def until_all_decide(self, why: str, since: float | None = None, timeout_s: float | None = None) -> bool:
        """Until every lane decided something after `since` (now): the stage is whole and under load. Notes when not."""
        since = time.monotonic() if since is None else since
        timeout_s = self.settle_s if timeout_s is None else timeout_s

        def all_did() -> bool:
            self.journals.update()
            return all(
                self.journals.decided[lane] and self.journals.decided[lane][-1].at > since for lane in range(self.lanes)
            )

        if not self.until(all_did, timeout_s):
            late = [
                n for n in range(self.lanes) if not self.journals.decided[n] or self.journals.decided[n][-1].at <= since
            ]
            self.broken.append(f"decides_again: lanes {late} did not within {timeout_s:.0f} s of {why}")
            return False
        return True

    def until_caught_up(self, timeout_s: float = 60.0) -> bool:
        """Until at most a second's triggers wait for their receipts."""
        return self.until(lambda: self.load.sent - self.watcher.answered < self.load.rate, timeout_s)

    def recoveries(self, fault: Fault, *, not_by: str | None = None, since: float | None = None) -> None:
        """How long each of a fault's lanes took until it decided again."""
        since = fault.at if since is None else since
        for lane in fault.lanes:
            at = self.journals.decided_since(lane, since, not_by=not_by)
            if at is not None:
                fault.recovered_s.append(at - since)

    # ── rest ──

    def rest(self) -> None:
        """No more load; all of it answered; a sentinel in each lane; gates stopped in order."""
        for proxy in self.proxies:
            proxy.weather = None
        for gate in self.gates:
            if gate.alive:
                gate.signal(signal.SIGCONT)
        if not any(gate.alive for gate in self.gates):
            self.gates[0].start()
        self.until(lambda: not self.load.offered, self.rest_s)
        self.load.__exit__(None, None, None)
        began = time.monotonic()
        if self.until(lambda: self.watcher.answered >= self.load.sent - self.load.failed, self.rest_s):
            self.drained_s = time.monotonic() - began
            self._send_sentinels()
        else:
            self.broken.append(
                f"drained: {self.watcher.answered} receipts for {self.load.sent} triggers {self.rest_s:.0f} s after the last fault"
            )
        for gate in self.gates:
            if gate.alive:
                try:
                    code = gate.stop()
                except subprocess.TimeoutExpired:
                    self.broken.append(f"no_gate_falls: {gate.name} did not stop when it was told to")
                    continue
                if code:
                    self.broken.append(
                        f"no_gate_falls: {gate.name} ended with {code} when it was told to stop: {self._last(gate)}"
                    )
            elif not gate.expected_down:
                self.broken.append(f"no_gate_falls: {gate.name} fell by itself: {self._last(gate)}")
        # Who is told to stop while it takes a lane leaves its first transaction to the timeout.
        self.until(lambda: not held_back(self.bootstrap, self.prefix), self.overdue_s)
        time.sleep(0.3)  # the reader's last look
        self.watcher.__exit__(None, None, None)
        self.journals.update()

    def _send_sentinels(self) -> None:
        """Nothing holds a lane back, though it says so to nobody: one more trigger in each is answered at once."""
        answers = self.watcher.expect()
        self.load.send_sentinels(answers.add)
        if not self.until(lambda: answers.all_answered(self.lanes), SENTINELS_S):
            self.broken.append(f"nothing_hangs: not all lanes answered one more trigger within {SENTINELS_S:.0f} s")

    def evidence(self) -> Evidence:
        """What there is to judge, once it rests."""
        watcher = self.watcher
        return Evidence(
            self.prefix, self.journals, [GateTraces(gate.name, gate.state_dir, gate.log_file) for gate in self.gates],
            self.load.meant, self.load.taken, watcher.seen, watcher.changed, watcher.error, self.broken,
            [Strike(fault.kind, fault.detail, fault.at) for fault in self.faults],
        )  # fmt: skip

    @staticmethod
    def _last(gate: CampaignGate) -> str:
        lines = gate.log_file.read_text(errors="replace").splitlines() if gate.log_file.exists() else []
        return " | ".join(lines[-2:])[-300:]

    def forget(self) -> None:
        """Its topics and its stores."""
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        mine = [name for name in admin.list_topics(timeout=10).topics if name.startswith(self.prefix)]
        for future in admin.delete_topics(mine, operation_timeout=30).values():
            future.result(60)
        shutil.rmtree(self.directory / "states", ignore_errors=True)
