"""Whether a one-shot token was used: what the dedup table of its home lane has heard of it since it was issued.

A used one is of no use to who gets hold of it: the same request again names the run it became, another is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Final

from app.api.places import Places
from app.api.problems import Problem
from app.authority.records import Issued
from app.gate.claims import Claims
from app.gate.idempotency import JTI_DIGEST_BYTES, home_lane, jti_identity, jti_scope, of_one_shot, unpack
from app.stream.cluster import Cluster
from app.stream.inquiry import CLOCKS_DIFFER_MS, entry_of

TIMEOUT_S: Final = 5.0
AT_ONCE, OF_ONE, LINE_MAX = 4, 2, 32  # of one client
LOOK_MAX: Final = 10_000  # offsets of the table, of all lanes, that one listing looks through
LOOK_TIMEOUT_S: Final = 2.0


class Used:
    """Asks the changelog, few times at once."""

    def __init__(self, cluster: Cluster, topic: str, lanes: int, grace_s: int) -> None:
        self._cluster, self._topic, self._lanes = cluster, topic, lanes
        self._grace_ms = grace_s * 1000  # a gate takes a token that long before its time
        self._places = Places(AT_ONCE, OF_ONE, LINE_MAX, TIMEOUT_S, late="not_ready")
        self._known: dict[str, int] = {}  # jtis that were found used, and when they expire

    async def was(self, claims: Claims, client: str) -> bool:
        """Whether it has become a run. Raises Problem when that cannot be told in time: nobody is told it has not.

        A lane that has decided much since the token was issued may have more to read than there is time for.
        """
        identity = of_one_shot(claims)
        if identity is None:
            return False
        partition = (self._topic, home_lane(identity.home_by, self._lanes))
        async with self._places.place(client):
            # A tombstone is of one that was swept, and long out of its time.
            since_ms = claims.iat * 1000 - self._grace_ms
            return await entry_of(self._cluster, partition, identity.digest, since_ms) is not None

    async def among(self, issued: Iterable[Issued], client: str) -> set[str]:
        """The jtis of one-shot tokens that have become a run, as far as that is told cheaply.

        Where more was decided since the oldest of them was issued, or Kafka does not answer, it is those that were
        found before: a used token that is taken for one that may be out does no harm.
        """
        asked = [each for each in issued if each.uses == "once" and each.jti not in self._known]
        if asked:
            # ValueError: entries of a later version
            with contextlib.suppress(Problem, TimeoutError, ValueError):
                async with asyncio.timeout(LOOK_TIMEOUT_S), self._places.place(client):
                    await self._look_for(asked)
        return set(self._known)

    async def _look_for(self, asked: list[Issued]) -> None:
        wanted = {jti_identity(jti_scope(each.issuer), each.jti)[:JTI_DIGEST_BYTES]: each for each in asked}
        since_ms = max(min(each.issued_at_ms for each in asked) - self._grace_ms - CLOCKS_DIFFER_MS, 0)
        spans = []
        for lane in range(self._lanes):
            partition = (self._topic, lane)
            first = await self._cluster.first_since(partition, since_ms)
            if first is not None:
                spans.append((partition, first[1], (await self._cluster.watermarks(partition)).high))
        if sum(high - first for _, first, high in spans) > LOOK_MAX:
            return
        now_s = int(time.time())
        self._known = {jti: expires_s for jti, expires_s in self._known.items() if expires_s > now_s}
        for partition, start, high in spans:
            async for chunk, _ in self._cluster.read(partition, start, high):
                for record in chunk:
                    found = None if record.value is None else wanted.get(unpack(record.value).jti_digest)
                    if found is not None:
                        self._known[found.jti] = found.expires_at_s
