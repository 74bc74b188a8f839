"""An outage of Kafka as a log tells it: when it begins, every so often what has failed since, and when it is over.

Clients say dozens of lines a second while no broker can be reached, each of them many times.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

EVERY_S: Final = 30.0
LOOK_S: Final = 1.0
SETTLED_S: Final = 3.0  # without a failure, after a broker has answered
TEXTS_MAX: Final = 8  # that are told with how often each was said
OTHERS: Final = "others"

Tell = Callable[..., None]  # a line, of fields


class Outage:
    """One at a time."""

    def __init__(self, began: Tell, goes_on: Tell, over: Tell) -> None:
        self._began, self._goes_on, self._over = began, goes_on, over
        self._since_s: float | None = None  # monotonic, as all of these; None: there is none
        self._failed_s = self._answered_s = self._told_s = 0.0
        self._failures = 0
        self._known: set[str] = set()
        self._said: Counter[str] = Counter()  # since it was last told

    def counts(self, kind: str, text: str, *, unreachable: bool = False) -> bool:
        """Take note of a failure. True: it need not be told, for it is one of an outage's many.

        What is of no kind that this outage had before is told all the same. One that says that a broker is
        `unreachable` begins an outage.
        """
        now_s = time.monotonic()
        if self._since_s is None and not (unreachable and self._begin(text, now_s)):
            return False
        self._failed_s = now_s
        self._failures += 1
        self._said[text if text in self._said or len(self._said) < TEXTS_MAX else OTHERS] += 1
        known = unreachable or kind in self._known
        self._known.add(kind)
        return known

    def answered(self) -> None:
        """A broker has."""
        self._answered_s = time.monotonic()

    def _begin(self, text: str, now_s: float) -> bool:
        from asyncio import get_running_loop

        try:
            loop = get_running_loop()
        except RuntimeError:  # nothing would tell of its end
            return False
        self._since_s = self._told_s = now_s
        self._failures = 0
        self._known.clear()
        self._said.clear()
        self._began(what=text)
        loop.call_later(LOOK_S, self._look, loop)
        return True

    def _look(self, loop: AbstractEventLoop) -> None:
        now_s, since_s = time.monotonic(), self._since_s or 0.0
        if self._answered_s > self._failed_s and now_s - self._failed_s > SETTLED_S:
            self._since_s = None
            self._over(lasted_s=round(self._failed_s - since_s, 1), failures=self._failures)
            return
        if now_s - self._told_s > EVERY_S:
            self._told_s = now_s
            said: dict[str, Any] = dict(self._said.most_common())
            self._said.clear()
            self._goes_on(for_s=round(now_s - since_s), failures=self._failures, since_the_last_line=said)
        loop.call_later(LOOK_S, self._look, loop)
