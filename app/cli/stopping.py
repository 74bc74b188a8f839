"""How a command that runs until it is told to stop is told so: SIGINT, SIGTERM or SIGHUP, at any moment."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Told to stop. A KeyboardInterrupt: asyncio lets no other exception out of a callback of its loop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code: Final = 128 + number  # as shells count


def interrupt_on_signals() -> None:
    """From now on the first of these signals raises Interrupted in the main thread, and the others do nothing.

    So they interrupt whatever is waited for, and a second Ctrl-C does not leave half of it running. The first process
    of a container has to do this early: the kernel sends it no signal that it does not handle.
    """
    told: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not told:
            told.append(number)
            raise Interrupted(number)

    for number in _SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored: nohup
            signal.signal(number, on_signal)
