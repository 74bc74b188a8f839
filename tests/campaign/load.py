"""The load: every trigger stands with its intended verdict in a ledger on disk, fsynced, before it is sent.

A trigger is known by its uid, which is its record's key: so the ledger is joined with the topic itself, and nothing
depends on acknowledgements that a dying broker did or did not give.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import KafkaException
from murmurhash2 import murmurhash2

from tests.support.invariants import Sent
from tests.support.issuer import JOB, SUBJECT, OtherIssuer
from tests.support.traffic import Traffic

MURMUR2_SEED = 0x9747B28C
WITHOUT_KEY = 0.05  # webhook triggers that carry no key: each is a run of its own
SAME_KEY = 0.03  # keys of another, under a subject of one's own
AT = "@"
MINUTE_S = 60


class Special(NamedTuple):
    """A trigger that a row makes itself. `taken` is told its id when the broker has it; `lane`: any, when None."""

    sent: Sent
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    taken: Callable[[str], object] | None = None
    lane: int | None = None


class Load(Traffic):
    """Traffic with a ledger. `backlog` tells how many triggers wait; beyond `backlog_max` nothing is added."""

    def __init__(
        self, bootstrap: str, topic: str, lanes: int, issuer: OtherIssuer, ledger_file: Path, *, rate: int, seed: int,
        backlog: Callable[[], int], backlog_max: int = 20_000, home_share: float = 0.6, one_shot: float = 0.02,
        repeats: float = 0.15, bad: float = 0.02, remembered: int = 20_000,
    ) -> None:  # fmt: skip
        super().__init__(
            bootstrap, topic, lanes, issuer, rate=rate, repeats=repeats, one_shot=one_shot, bad=bad, seed=seed,
            remembered=remembered,
            options={
                "enable.idempotence": True, "message.timeout.ms": 300_000, "linger.ms": 10,
                "message.max.bytes": 2_000_000, "reconnect.backoff.max.ms": 500, "log_level": 2,
            },
        )  # fmt: skip
        self.meant: dict[bytes, Sent] = {}
        self.taken: set[bytes] = set()  # acknowledged
        self._ledger_file, self._home_share = ledger_file, home_share
        self._backlog, self._backlog_max = backlog, backlog_max
        self._pending: list[tuple[bytes, Special]] = []
        self.offered: deque[Special] = deque()
        self._uids = itertools.count()
        self._ledger = os.open(ledger_file, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        now_s = int(time.time())
        # Good for a gate that goes by a clock of its own which is an hour late, or early; by the broker's, neither is.
        self._expired = issuer.token(
            "many", iat=now_s - 80 * MINUTE_S, nbf=now_s - 80 * MINUTE_S, exp=now_s - 10 * MINUTE_S
        )
        self._early = issuer.token("many", nbf=now_s + 50 * MINUTE_S, exp=now_s + 120 * MINUTE_S)
        self._when_valid_ms = (now_s - 40 * MINUTE_S) * 1_000
        self._elsewhere = issuer.token("many", aud="tollgate:another")
        # Subject and job run together to the same text for both, and another subject altogether.
        self._others = {
            name: (issuer.token("many", sub=subject, job=job), job)
            for name, subject, job in (("shifted", SUBJECT + JOB[:2], JOB[2:]), ("other", "service:other", JOB))
        }

    @property
    def sent(self) -> int:
        return len(self.meant)

    def _new(self) -> tuple[str, bytes]:
        if self._random.random() < WITHOUT_KEY:
            self._number += 1
            return "", json.dumps(
                {"job": JOB, "params": {"n": self._number}, "token": self._random.choice(self._webhooks)}
            ).encode()
        if self._number and self._random.random() < SAME_KEY:
            # A key that was used lately, under another subject: a request of its own.
            name = self._random.choice(tuple(self._others))
            token, job = self._others[name]
            number = max(self._number - self._random.randrange(200), 1)
            key = f"request-{number}"
            trigger = {"job": job, "params": {"n": number}, "token": token, "idempotency_key": key}
            return f"{key}{AT}{name}", json.dumps(trigger).encode()
        return super()._new()

    def _bad_ones(self) -> Sequence[Callable[[], tuple[Sent, bytes]]]:
        def bad(reason: str, token: str) -> Callable[[], tuple[Sent, bytes]]:
            return lambda: (Sent(None, "rejected", reason), json.dumps({"job": JOB, "token": token}).encode())

        return (
            *super()._bad_ones(),
            bad("token_expired", self._expired),
            bad("token_not_yet_valid", self._early),
            bad("audience_mismatch", self._elsewhere),
        )

    def _produce(self, sent: Sent, value: bytes) -> None:
        if sent.identity == "":  # of a trigger without a key, new or shown again: none
            sent = sent._replace(identity=None)
        self._pending.append((self._uid(), Special(sent, value)))

    def _uid(self) -> bytes:
        return b"%d" % next(self._uids)

    def offer(self, special: Special) -> None:
        """Send it at the next tick; from any thread."""
        self.offered.append(special)

    def announce(self, sent: Sent) -> bytes:
        """The uid of a trigger that a row sends by itself: it stands in the ledger now."""
        uid = self._uid()
        self._write([(uid, Special(sent, None))])
        return uid

    def send_sentinels(self, taken: Callable[[str], object]) -> None:
        """A good trigger to each lane, now. Once the thread has ended."""
        for lane in range(self._lanes):
            value = json.dumps({"job": JOB, "params": {"sentinel": lane}, "token": self.webhook()}).encode()
            uid, special = self._uid(), Special(Sent(None, "good"), value, taken=taken, lane=lane)
            self._write([(uid, special)])
            self._send(uid, special)
        self.failed += self._producer.flush(30)

    def told(self, uid: bytes, error: Any) -> None:
        """What became of sending it."""
        if error is None:
            self.taken.add(uid)
        else:
            self.failed += 1

    @property
    def rate(self) -> int:
        return self._rate

    def webhook(self) -> str:
        return self._random.choice(self._webhooks)

    def _hand_over(self) -> None:
        pending, self._pending = self._pending, []
        if self._backlog() > self._backlog_max:
            return
        while self.offered:
            pending.append((self._uid(), self.offered.popleft()))
        if pending:
            self._write(pending)
            for uid, special in pending:
                self._send(uid, special)

    def _write(self, pending: Sequence[tuple[bytes, Special]]) -> None:
        lines = [
            b"%s\t%s\n"
            % (uid, b"\t".join(map(_text, (special.sent.intended, special.sent.reason, special.sent.identity))))
            for uid, special in pending
        ]
        os.write(self._ledger, b"".join(lines))
        os.fdatasync(self._ledger)
        self.meant.update({uid: special.sent for uid, special in pending})

    def _send(self, uid: bytes, special: Special) -> None:
        sent = special.sent

        def delivered(error: Any, message: Any) -> None:
            self.told(uid, error)
            if error is None and special.taken is not None:
                special.taken(f"{message.partition()}-{message.offset()}")

        lane = self._random.randrange(self._lanes) if special.lane is None else special.lane
        if special.lane is None and sent.identity is not None and self._random.random() < self._home_share:
            lane = home(sent.identity.partition(AT)[0], self._lanes)
        # Who shows an expired token dates its record back to when it was good.
        options: dict[str, Any] = {"timestamp": self._when_valid_ms} if sent.reason == "token_expired" else {}
        if special.headers:
            options["headers"] = list(special.headers)
        while True:
            try:
                self._producer.produce(
                    self._topic, special.value, uid, partition=lane, on_delivery=delivered, **options
                )
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                self.told(uid, error)  # it stands in the ledger, and will not be on the topic
                return
            else:
                return


def home(key: str, lanes: int) -> int:
    """Where a default Java producer puts a record of that key."""
    return int(murmurhash2(key.encode(), MURMUR2_SEED) & 0x7FFFFFFF) % lanes


def _text(word: str | None) -> bytes:
    return (word or "-").encode()
