"""What the gates of the world of rows wrote about each trigger, read by a plain Kafka client."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

TIMEOUT_S = 60.0


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
