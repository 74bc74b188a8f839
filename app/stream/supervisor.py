"""`tollgate gate`: one worker process per core, restarted when it falls, stopped in order when told to.

A worker that keeps falling for one cause stops the gate: a crash loop hides what a stopped process says. One that ends
by what its successor would end by stops it at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.config import ConfigError, Settings
from app.local import tether
from app.logs import Event, log

if TYPE_CHECKING:
    from app.stream.administration import Checked
    from app.stream.topic_check import Deployment

RESTARTS_MAX: Final = 3  # of one worker within the window; then the gate stops and says so
RESTART_WINDOW_S: Final = 60.0
RESTART_WAIT_S: Final = 1.0
START_PATIENCE_S: Final = 30.0  # with a Kafka that is there and cannot say yet what its topics are
STOP_WAIT_S: Final = 20.0
POLL_S: Final = 0.1
INDEX_VARIABLE: Final = "TOLLGATE_WORKER_INDEX"
UNMENDABLE: Final = 128  # a worker's exit code is this and that of the gate when a restart would not mend it
_ENDED_ON_PURPOSE: Final = (0, 2)  # done; or a setting is wrong


class UnmendableError(Exception):
    """A worker of several cannot work: its topics, or whatever kept it from looking at them, are the cause of this."""


def run(settings: Settings) -> int:
    """Run the gate until SIGTERM or SIGINT. Returns the exit code: 0, or that of a worker that could not go on.

    Raises ConfigError and what `_work` does; UnmendableError as one of several workers.
    """
    _require_state_dir(settings.gate.state_dir)
    workers = settings.gate.workers or os.cpu_count() or 1
    if INDEX_VARIABLE in os.environ:
        _work_as_one_of_several(settings, int(os.environ[INDEX_VARIABLE]))
        return 0
    if workers == 1:
        _work(settings, 0)
        return 0
    return _Workers(workers, [sys.executable, "-m", "app.cli.main", *sys.argv[1:]]).run()


def _require_state_dir(directory: Path) -> None:
    """Before lanes are taken from gates that could decide them. Raises ConfigError."""
    probe = directory / f".writable-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe.write_bytes(b"\n")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"setting gate.state_dir is {directory}, where the gate cannot keep its stores ({error.strerror}): "
            "name a directory that it may write"
        ) from None


def _work_as_one_of_several(settings: Settings, index: int) -> None:
    try:
        deployment = _checked(settings)
    except ConfigError:
        raise
    except Exception as error:
        raise UnmendableError from error
    from app.stream import administration, worker

    try:
        worker.run(settings, deployment, index)
    except administration.TopicsError as error:
        raise UnmendableError from error


def _work(settings: Settings, index: int) -> None:
    """Check the topics, then be a worker until told to stop.

    Raises TopicsError where a topic breaks a guarantee, ConfigError, KafkaException or KafkaError.
    """
    deployment = _checked(settings)
    from app.stream import worker

    worker.run(settings, deployment, index)


def _checked(settings: Settings) -> Deployment:
    # Imported here: who only supervises needs none of it. And a restart is to decide within a second of the process's
    # start, so the check, which mostly waits for the broker, does so while the rest of the worker is imported.
    from app.stream import administration

    with ThreadPoolExecutor(1) as pool:
        checking = pool.submit(_look, settings)
        from app.stream import worker  # noqa: F401
    checked = checking.result()
    if checked.deployment is None or checked.fatal:
        raise administration.TopicsError(checked.complaint)
    return checked.deployment


def _look(settings: Settings) -> Checked:
    """The topics as they are. Raises what `administration.check` does.

    A gate may start while a broker falls. The others are asked again until they have a controller and leaders; where
    none answers at all, that is told at once.
    """
    from app.stream import administration, inspection

    def failed(error: Exception) -> None:
        inspection.connect(settings.kafka)
        log.failed(Event.TOPICS_UNSEEN, error, what=str(error)[:300])

    return administration.once_led(lambda: administration.check(settings), START_PATIENCE_S, failed)


class _Workers:
    def __init__(self, count: int, command: Sequence[str]) -> None:
        self._command = command
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._start_at_s = dict.fromkeys(range(count), 0.0)  # of those that do not run
        self._falls: dict[int, list[float]] = {index: [] for index in range(count)}
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_stop)
        code = 0
        while not self._stopping:
            for index in [index for index, at_s in self._start_at_s.items() if at_s <= time.monotonic()]:
                self._start(index)
            time.sleep(POLL_S)
            for index, process in list(self._processes.items()):
                ended = process.poll()
                if ended is not None and not self._stopping:
                    del self._processes[index]
                    code = self._fell(index, ended) or code
        self._stop()
        return code

    def _told_to_stop(self, *_: Any) -> None:
        """Only a flag: a signal comes anywhere, even while a worker is being made that nobody knows of yet."""
        self._stopping = True

    def _start(self, index: int) -> None:
        if self._stopping:
            return
        # The same command in a process of its own: nothing is shared, so nothing is lost with another's fall.
        self._processes[index] = subprocess.Popen(
            # Tethered: a gate that is killed takes its workers along, whatever they are doing.
            [sys.executable, tether.__file__, str(os.getpid()), *self._command],
            env=os.environ | {INDEX_VARIABLE: str(index)},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops its workers in order
        )
        del self._start_at_s[index]

    def _fell(self, index: int, ended: int) -> int:
        """Have a worker started again in a moment, or the gate stopped when that is of no use."""
        log.error(Event.WORKER_EXITED, worker=index, code=ended)
        now = time.monotonic()
        falls = [at for at in self._falls[index] if now - at < RESTART_WINDOW_S] + [now]
        self._falls[index] = falls
        # One that fell before may have fallen with a broker that is on its way back: it is restarted as after any fall.
        unmendable = ended > UNMENDABLE and len(falls) == 1
        if unmendable or ended in _ENDED_ON_PURPOSE or len(falls) > RESTARTS_MAX:
            self._stopping = True
            return max(ended - UNMENDABLE if ended > UNMENDABLE else ended, 1)
        self._start_at_s[index] = now + RESTART_WAIT_S
        return 0

    def _stop(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_WAIT_S
        for process in self._processes.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
