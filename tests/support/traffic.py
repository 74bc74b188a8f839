"""An emitter that is not ours: triggers by confluent-kafka on random partitions, and a ledger of what was sent."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Producer

from tests.support.background import Background
from tests.support.invariants import Ledger, Sent
from tests.support.issuer import JOB, OtherIssuer

TICK_S = 0.01
WEBHOOK_TOKENS = 20
REPEATS_REMEMBERED = 20_000


class Traffic(Background):
    """Sends at a steady rate on a thread of its own until it is left; repeats are the same record again."""

    def __init__(
        self, bootstrap: str, topic: str, lanes: int, issuer: OtherIssuer, *, rate: int, repeats: float = 0.3,
        one_shot: float = 0.2, bad: float = 0.01, seed: int = 1, remembered: int = REPEATS_REMEMBERED,
        options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__("traffic")
        self.ledger = Ledger()
        self.failed = 0
        self.seconds = 0.0
        self._topic, self._lanes, self._issuer = topic, lanes, issuer
        self._rate, self._repeats, self._one_shot, self._bad = rate, repeats, one_shot, bad
        self._random, self._remembered = random.Random(seed), remembered
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "acks": "all"} | dict(options or {}))
        self._webhooks = [issuer.token("many") for _ in range(WEBHOOK_TOKENS)]
        self._past: list[tuple[str, bytes]] = []
        self._number = 0

    def _run(self) -> None:
        began = time.monotonic()
        sent = 0
        while not self._stop.wait(TICK_S):
            due = int((time.monotonic() - began) * self._rate)
            for _ in range(due - sent):
                self._send_one()
            sent = due
            self._hand_over()
            self._producer.poll(0)
        self.seconds = time.monotonic() - began
        self.failed += self._producer.flush(30)

    def _hand_over(self) -> None:
        """Once a tick: nothing is kept back here."""

    def _send_one(self) -> None:
        dice = self._random
        if dice.random() < self._bad:
            self._produce(*dice.choice(self._bad_ones())())
        elif self._past and dice.random() < self._repeats:
            identity, value = dice.choice(self._past)
            self._produce(Sent(identity, "good"), value)
        else:
            identity, value = self._new()
            if len(self._past) < self._remembered:
                self._past.append((identity, value))
            else:
                self._past[dice.randrange(self._remembered)] = (identity, value)
            self._produce(Sent(identity, "good"), value)

    def _new(self) -> tuple[str, bytes]:
        self._number += 1
        identity = f"request-{self._number}"
        trigger: dict[str, Any] = {"job": JOB, "params": {"n": self._number}}
        if self._random.random() < self._one_shot:
            trigger["token"] = self._issuer.token("once", key=identity)
        else:
            trigger |= {"token": self._random.choice(self._webhooks), "idempotency_key": identity}
        return identity, json.dumps(trigger).encode()

    def _bad_ones(self) -> Sequence[Callable[[], tuple[Sent, bytes]]]:
        """Makers of triggers that must be refused, each with its reason."""

        def bad(reason: str, token: Callable[[], str], job: str = JOB) -> Callable[[], tuple[Sent, bytes]]:
            return lambda: (
                Sent(None, "rejected", reason),
                json.dumps({"job": job, "token": token(), "idempotency_key": "stolen"}).encode(),
            )

        good = self._random.choice(self._webhooks)
        return (
            lambda: (Sent(None, "rejected", "json_malformed"), b"{ not json"),
            bad("signature_invalid", lambda: good[:-4] + "AAAA"),
            bad("job_not_authorized", lambda: good, "payroll/run"),
        )

    def _produce(self, sent: Sent, value: bytes) -> None:
        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                self.failed += 1
            else:
                self.ledger.sent[f"{message.partition()}-{message.offset()}"] = sent

        self._producer.produce(self._topic, value, partition=self._random.randrange(self._lanes), on_delivery=delivered)
