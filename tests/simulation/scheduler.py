"""A deterministic event loop: virtual time, no threads, no sleeping, and a seed that chooses who runs next.

Every callback belongs to a *process* of the simulated world, told by its context. A process may be killed between any
two callbacks, and then nothing of it ever runs again, no `finally` and no cancellation either; or stopped and continued,
as by SIGSTOP and SIGCONT. The world itself (brokers, emitters, faults) is a process, too, that nobody kills.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from asyncio import Handle, TimerHandle
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeVar

T = TypeVar("T")

BEGAN_MS: Final = 1_800_000_000_000  # the wall clock when a world begins
STEP_S: Final = 20e-6  # what one callback takes
STEPS_MAX: Final = 2_000_000  # of one world: beyond it something turns round and round


class Stuck(Exception):  # noqa: N818
    """A world that goes on for ever, or in which nothing can happen any more."""


class Process:
    """What is killed, stopped and continued as one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.clock_off_ms = 0  # wall clock, against the broker's
        self.ready: deque[Handle] = deque()
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return self.name


PROCESS: ContextVar[Process] = ContextVar("PROCESS")


class _Soon(Handle):
    """asyncio's, made in half the time: nothing in it is for debugging."""

    __slots__ = ()

    def __init__(self, callback: Any, args: Any, loop: asyncio.AbstractEventLoop, context: Context | None) -> None:
        self._callback, self._args, self._loop = callback, args, loop
        self._context = copy_context() if context is None else context
        self._cancelled, self._repr, self._source_traceback = False, None, None

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None


class _At(TimerHandle):
    """Likewise, for a time."""

    __slots__ = ()

    def __init__(
        self, when: float, callback: Any, args: Any, loop: asyncio.AbstractEventLoop, context: Context | None
    ) -> None:
        self._when, self._callback, self._args, self._loop = when, callback, args, loop
        self._context = copy_context() if context is None else context
        self._cancelled, self._scheduled, self._repr, self._source_traceback = False, False, None, None

    def cancel(self) -> None:
        """It stays in the heap until its time."""
        self._cancelled = True
        self._callback = self._args = None


class Loop(asyncio.BaseEventLoop):
    """One world's loop. `fifo` runs each process's callbacks in order, as asyncio does; else in any order."""

    def __init__(self, seed: int, *, fifo: bool = True, step_s: float = STEP_S) -> None:
        super().__init__()
        self.random = random.Random(f"schedule {seed}")
        self._fifo, self._step_s = fifo, step_s
        self._now = 0.0
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._order = self.steps = 0
        self._runnable: list[Process] = []  # alive, not stopped, with something to run
        self._graves: list[Any] = []
        self.world = Process("world")
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.unhandled: list[dict[str, Any]] = []

    # ── asyncio's side ──

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Handle:
        handle = _Soon(callback, args, self, context)
        self._add(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> TimerHandle:
        handle = _At(when, callback, args, self, context)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, handle))
        return handle

    def run_in_executor(self, _: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """No threads: it is run at once."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        task._log_destroy_pending = False
        self._graves.append(coro)
        return task

    def _run_once(self) -> None:
        """All there is to do, until it is stopped: asyncio calls this for ever, and here one call is enough."""
        timers, runnable, dice = self._timers, self._runnable, self.random.random
        fifo, step_s = self._fifo, self._step_s
        while not self._stopping:
            now = self._now
            while timers and timers[0][0] <= now:
                handle: Handle = heapq.heappop(timers)[2]
                if not handle._cancelled:
                    self._add(handle)
            if not runnable:
                self._wait_for_timer()
                continue
            at = int(dice() * len(runnable)) if len(runnable) > 1 else 0
            ready = runnable[at].ready
            if fifo or len(ready) == 1:
                handle = ready.popleft()
            else:
                which = int(dice() * len(ready))
                handle = ready[which]
                del ready[which]
            if not ready:
                runnable[at] = runnable[-1]
                runnable.pop()
            self._now = now + step_s
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise Stuck(f"{STEPS_MAX} steps, and it is only {now:.1f} s")
            if not handle._cancelled:
                try:
                    handle._context.run(handle._callback, *handle._args)
                except Exception as error:
                    self.call_exception_handler({"message": "a callback raised", "exception": error})

    def _wait_for_timer(self) -> None:
        """Nobody can run: time goes on to the next timer."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise Stuck(f"nothing can happen any more at {self._now:.1f} s")
        self._now = max(timers[0][0], self._now)

    def _add(self, handle: Handle) -> None:
        process = handle._context.get(PROCESS) or self.world
        if process.alive:
            if not process.ready and not process.stopped:
                self._runnable.append(process)
            process.ready.append(handle)

    # ── the world's side ──

    def spawn(self, process: Process, coro: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """A task in a process."""
        return process.context.run(lambda: self.create_task(coro, name=name))

    def kill(self, process: Process) -> None:
        """As by SIGKILL: what waits in it never runs."""
        process.alive = False
        self._take_off(process)
        process.ready.clear()

    def stop_process(self, process: Process) -> None:
        """As by SIGSTOP: what becomes ready in it waits."""
        process.stopped = True
        self._take_off(process)

    def continue_process(self, process: Process) -> None:
        """As by SIGCONT."""
        if process.stopped and process.alive:
            process.stopped = False
            if process.ready:
                self._runnable.append(process)

    def _take_off(self, process: Process) -> None:
        if process in self._runnable:
            self._runnable.remove(process)

    def bury(self) -> None:
        """Close what is left of the dead, after everything has been judged: their `finally` runs now."""
        for coro in self._graves:
            try:
                coro.close()
            except (RuntimeError, AttributeError):  # it awaits in a finally, or runs
                continue
        self._graves.clear()
        self.close()


def current_process() -> Process | None:
    return PROCESS.get(None)


@contextmanager
def virtual_time(loop: Loop) -> Iterator[None]:
    """The time module tells the loop's time; the wall clock is that of the process that asks."""

    def wall_ns() -> int:
        process = PROCESS.get(None)
        off_ms = process.clock_off_ms if process is not None else 0
        return int((BEGAN_MS + off_ms + loop._now * 1000) * 1_000_000)

    replaced = {
        "monotonic": lambda: loop._now,
        "monotonic_ns": lambda: int(loop._now * 1e9),
        "time_ns": wall_ns,
        "time": lambda: wall_ns() / 1e9,
    }
    originals = {name: getattr(time, name) for name in replaced}
    for name, function in replaced.items():
        setattr(time, name, function)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(time, name, function)


def run(loop: Loop, coro: Coroutine[Any, Any, T]) -> T:
    """Run the world to its end."""
    with virtual_time(loop):
        try:
            return loop.run_until_complete(loop.spawn(loop.world, coro))
        finally:
            asyncio.set_event_loop(None)
