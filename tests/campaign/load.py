"""The load: every trigger stands with its intended verdict in a ledger on disk, fsynced, before it is sent.

A trigger is known by its uid, which is its record's key: so the ledger is joined with the topic itself, and nothing
depends on acknowledgements that a dying broker did or did not give.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from murmurhash2 import murmurhash2

from tests.support.invariants import Sent
from tests.support.issuer import JOB, OtherIssuer
from tests.support.traffic import Traffic

MURMUR2_SEED = 0x9747B28C
WITHOUT_KEY = 0.05  # webhook triggers that carry no key: each is a run of its own
HOUR_S = 3_600


class Load(Traffic):
    """Traffic with a ledger. `backlog` tells how many triggers wait; beyond `backlog_max` nothing is added."""

    def __init__(
        self, bootstrap: str, topic: str, lanes: int, issuer: OtherIssuer, ledger_file: Path, *, rate: int, seed: int,
        backlog: Callable[[], int], backlog_max: int = 20_000, home_share: float = 0.6, one_shot: float = 0.02,
        repeats: float = 0.15, bad: float = 0.02,
    ) -> None:  # fmt: skip
        super().__init__(
            bootstrap, topic, lanes, issuer, rate=rate, repeats=repeats, one_shot=one_shot, bad=bad, seed=seed,
            options={
                "enable.idempotence": True, "message.timeout.ms": 300_000, "linger.ms": 10,
                "reconnect.backoff.max.ms": 500,
            },
        )  # fmt: skip
        self.meant: dict[bytes, Sent] = {}
        self.taken: set[bytes] = set()  # acknowledged
        self._ledger_file, self._home_share = ledger_file, home_share
        self._backlog, self._backlog_max = backlog, backlog_max
        self._pending: list[tuple[bytes, Sent, bytes]] = []
        self._ledger = os.open(ledger_file, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        now_s = int(time.time())
        old = {"iat": now_s - 3 * HOUR_S, "nbf": now_s - 3 * HOUR_S, "exp": now_s - 2 * HOUR_S}
        self._expired = issuer.token("many", **old)
        self._elsewhere = issuer.token("many", aud="tollgate:another")

    @property
    def sent(self) -> int:
        return len(self.meant)

    def _new(self) -> tuple[str, bytes]:
        if self._random.random() < WITHOUT_KEY:
            self._number += 1
            return "", json.dumps(
                {"job": JOB, "params": {"n": self._number}, "token": self._random.choice(self._webhooks)}
            ).encode()
        return super()._new()

    def _bad_ones(self) -> Sequence[Callable[[], tuple[Sent, bytes]]]:
        def bad(reason: str, token: str) -> Callable[[], tuple[Sent, bytes]]:
            return lambda: (Sent(None, "rejected", reason), json.dumps({"job": JOB, "token": token}).encode())

        return (
            *super()._bad_ones(),
            bad("token_expired", self._expired),
            bad("audience_mismatch", self._elsewhere),
        )

    def _produce(self, sent: Sent, value: bytes) -> None:
        if sent.identity == "":  # of a trigger without a key, new or shown again: none
            sent = sent._replace(identity=None)
        uid = b"%d" % (len(self.meant) + len(self._pending))
        self._pending.append((uid, sent, value))

    def _hand_over(self) -> None:
        pending, self._pending = self._pending, []
        if not pending or self._backlog() > self._backlog_max:
            return
        lines = [
            b"%s\t%s\n" % (uid, b"\t".join(map(_text, (sent.intended, sent.reason, sent.identity))))
            for uid, sent, _ in pending
        ]
        os.write(self._ledger, b"".join(lines))
        os.fdatasync(self._ledger)
        for uid, sent, value in pending:
            self.meant[uid] = sent
            self._send(uid, sent, value)

    def _send(self, uid: bytes, sent: Sent, value: bytes) -> None:
        def delivered(error: Any, _: Any) -> None:
            if error is None:
                self.taken.add(uid)
            else:
                self.failed += 1

        lane = self._random.randrange(self._lanes)
        if sent.identity is not None and self._random.random() < self._home_share:
            lane = home(sent.identity, self._lanes)
        while True:
            try:
                self._producer.produce(self._topic, value, uid, partition=lane, on_delivery=delivered)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return


def home(key: str, lanes: int) -> int:
    """Where a default Java producer puts a record of that key."""
    return int(murmurhash2(key.encode(), MURMUR2_SEED) & 0x7FFFFFFF) % lanes


def _text(word: str | None) -> bytes:
    return (word or "-").encode()
