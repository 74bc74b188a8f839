"""Every log event, once, and how a process logs: an entry a line on stderr. Never a token in any of them.

Written by hand, because a gate waits for what it imports: the libraries for this cost it a tenth of a second.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from app.outage import Outage

LIBRARY_CHARACTERS_MAX: Final = 500


class Event:
    """Names of log events. Stable: alerts and tests rely on them."""

    GATE_STARTED: Final = "gate_started"
    GATE_STOPPED: Final = "gate_stopped"
    WORKER_EXITED: Final = "worker_exited"
    LANE_TAKEN: Final = "lane_taken"
    LANE_RELEASED: Final = "lane_released"
    LANE_FENCED: Final = "lane_fenced"
    LANE_HELD: Final = "lane_held"
    LANE_RESUMED: Final = "lane_resumed"
    LANE_RETRY: Final = "lane_retry"
    LANE_STOPPED: Final = "lane_stopped"
    STORE_WIPED: Final = "store_wiped"
    STORE_LOCKED: Final = "store_locked"
    RESTORED: Final = "restored"
    COMMIT_UNKNOWN: Final = "commit_unknown"
    TRANSACTION_TORN: Final = "transaction_torn"
    INTERNAL_DENY: Final = "internal_deny"
    TABLE_RECORD_BAD: Final = "table_record_bad"
    TABLE_LOADED: Final = "table_loaded"
    TOPICS_UNSEEN: Final = "topics_unseen"
    JWKS_LOADED: Final = "jwks_loaded"
    JWKS_FAILED: Final = "jwks_failed"
    INSECURE_HS256: Final = "insecure_hs256"
    BATCH_UNREAD: Final = "batch_unread"
    HANDOFF_FOREIGN: Final = "handoff_foreign"
    FETCH_FAILED: Final = "fetch_failed"
    READ_WAITS: Final = "read_waits"
    KAFKA_UNREACHABLE: Final = "kafka_unreachable"
    KAFKA_REACHED: Final = "kafka_reached"
    SERVE_STARTED: Final = "serve_started"
    SERVE_STOPPING: Final = "serve_stopping"
    SERVE_STOPPED: Final = "serve_stopped"
    SERVE_EXPOSED: Final = "serve_exposed"
    SERVE_FEWER: Final = "serve_fewer"  # connections than asked for
    SERVE_FULL: Final = "serve_full"
    SERVE_ERROR: Final = "serve_error"
    PUBLISH_FAILED: Final = "publish_failed"
    RECEIPT_FOREIGN: Final = "receipt_foreign"
    LIBRARY: Final = "library"


Entry = dict[str, Any]


class Log:
    """Structured logs: each entry is an event of the list above with its fields."""

    def __init__(self) -> None:
        self.lost = 0  # entries that could not be written
        self._level = logging.INFO
        self._write: Callable[[Entry], None] = _json_line
        unreachable = partial(self.warning, Event.KAFKA_UNREACHABLE)
        self.outage = Outage(unreachable, unreachable, partial(self.info, Event.KAFKA_REACHED))

    def configure(self, level: int, write: Callable[[Entry], None]) -> None:
        self._level, self._write = level, write

    def info(self, event: str, **fields: Any) -> None:
        self._tell(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._tell(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._tell(logging.ERROR, event, fields)

    def failed(self, event: str, error: BaseException | None, *, level: int = logging.WARNING, **fields: Any) -> None:
        """What fails again and again while Kafka cannot be reached: an outage counts it, once it was told."""
        name = type(error).__name__
        if not self.outage.counts(f"{event} {name} {fields.get('lane')}", f"{event} {name}"):
            self._tell(level, event, {**fields, "error": name})

    @contextmanager
    def into(self, entries: list[Entry]) -> Iterator[None]:
        """What is logged meanwhile goes into `entries` and nowhere else."""
        before = self._level, self._write
        self._level, self._write = logging.INFO, entries.append
        try:
            yield
        finally:
            self._level, self._write = before

    def _tell(self, level: int, event: str, fields: Entry) -> None:
        if level >= self._level:
            now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            self._write({**fields, "event": event, "level": logging.getLevelName(level).lower(), "timestamp": now})


def _json_line(entry: Entry) -> None:
    # Escaped to ASCII: no stranger's text ends a line, colours a terminal or turns its direction.
    _write_line(json.dumps(entry, default=str))


def _console_line(entry: Entry) -> None:
    colour = _COLOURS.get(entry["level"], "") if _on_terminal() else ""
    fields = " ".join(
        f"{name}={value if isinstance(value, int | float) else json.dumps(value, default=str)}"
        for name, value in entry.items()
        if name not in {"event", "level", "timestamp"}
    )
    line = f"{entry['timestamp'][11:23]} {entry['level']:<7} {entry['event']:<18} {fields}".rstrip()
    _write_line(f"{colour}{line}\x1b[0m" if colour else line)


def _write_line(line: str) -> None:
    """A log that cannot be written, as on a full disk, stops nobody who logs: lanes do so while they mend errors."""
    try:
        # In one piece: workers share a stderr, and print() writes the line's end apart where Python does not buffer.
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, *_NO_STDERR):
        log.lost += 1


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except _NO_STDERR:
        return False


_NO_STDERR: Final = (ValueError, AttributeError)  # it was closed; it was so when the process started, and is None


_COLOURS: Final = {"warning": "\x1b[33m", "error": "\x1b[31m"}

log: Final = Log()


_UNREACHABLE: Final = ("Unable connect to ", "Unable to update metadata from ")  # aiokafka, of a broker


class _FromLibraries(logging.Handler):
    """What libraries tell the standard library: an entry like any other, so that every line can be read by machines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {"logger": record.name, "what": record.getMessage()[:LIBRARY_CHARACTERS_MAX]}
            unreachable = str(record.msg).startswith(_UNREACHABLE)
            if not record.exc_info and log.outage.counts(str(record.msg), fields["what"], unreachable=unreachable):
                return
            if record.exc_info and record.exc_info[1] is not None:
                fields["error"] = repr(record.exc_info[1])[:LIBRARY_CHARACTERS_MAX]
            log.warning(Event.LIBRARY, **fields)
        except Exception:
            self.handleError(record)


def configure_logging(level: str = "info", log_format: str = "auto") -> None:
    """Structured logs to stderr: JSON for machines, coloured lines on a terminal."""
    as_json = log_format == "json" or (log_format == "auto" and not _on_terminal())
    number = logging.getLevelNamesMapping()[level.upper()]
    log.configure(number, _json_line if as_json else _console_line)
    # What clients say of connections is worth a line, no more; and a warning: whether it matters, our own events say.
    logging.basicConfig(handlers=[_FromLibraries()], level=max(number, logging.WARNING), force=True)
    logging.getLogger("aiokafka").setLevel(logging.ERROR if number > logging.DEBUG else logging.INFO)
