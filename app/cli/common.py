"""What the commands share: their common options, how rows are printed, exit codes, and errors as one sentence.

stdout is data, stderr is talk. Imports here stay light: every command pays for them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import typer

from app.cli import plain
from app.cli.stopping import Interrupted

if TYPE_CHECKING:
    from app.config import Kafka, Settings

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
SOME_FAILED: Final = 3
NOT_ALLOWED: Final = 4
NOTHING_MATCHED: Final = 5
LOGIN_NEEDED: Final = 6
TIMED_OUT: Final = 124
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count

T = TypeVar("T")
Row = Mapping[str, Any]


class OutputForm(StrEnum):
    """How rows are printed. Not given: a table on a terminal, else one JSON object a line."""

    TABLE = "table"
    JSON = "json"  # one array; when a command has a single object to say, that object
    JSONL = "jsonl"


Bootstrap = Annotated[
    str | None,
    typer.Option(
        "--bootstrap",
        metavar="HOST:PORT",
        show_default=False,
        help="Kafka brokers (env: TOLLGATE_BOOTSTRAP; default localhost:9092)",
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        metavar="TEXT",
        show_default=False,
        help="of topics and transactional ids (env: TOLLGATE_PREFIX; default tollgate.)",
    ),
]
AsIdentity = Annotated[
    str | None,
    typer.Option("--as", metavar="IDENTITY", show_default=False, help="who asks (default issuer.identity)"),
]
SecretFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="holds its secret; - is stdin; default TOLLGATE_CLIENT_SECRET, or you are asked on a terminal",
    ),
]
Output = Annotated[
    OutputForm | None,
    typer.Option(
        "-o",
        "--output",
        show_default=False,
        help="table, json (one array) or jsonl (an object a line); default table on a terminal, else jsonl",
    ),
]


def new_app(**options: Any) -> typer.Typer:
    """A Typer app as all of ours are: short help names, no completion options in every help text.

    Help is plain text: loading the library for boxes and colours takes as long as all the rest.
    """
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


def say(text: str) -> None:
    """Talk to the person at the terminal; never data. Every sentence of ours goes through here, without tokens."""
    print(plain.sentence(text), file=sys.stderr, flush=True)


def fail(sentence: str, code: int = FAILED) -> NoReturn:
    """End the command with one sentence on stderr that says what is wrong and what to do."""
    say(sentence)
    raise typer.Exit(code)


def settings_of(bootstrap: str | None = None, prefix: str | None = None, **overrides: Any) -> Settings:
    """The settings of this process with a command's own options over them. Raises ConfigError (exit 2)."""
    from app import config

    settings = config.load(kafka__bootstrap=bootstrap, kafka__prefix=prefix, **overrides)
    for address in settings.kafka.bootstrap.split(","):
        if not _is_address(address.strip()):
            fail(f"kafka.bootstrap (--bootstrap) has {address!r}: write HOST:PORT, several with commas between", USAGE)
    _reached.append(settings.kafka)
    return settings


# A host, or one in brackets (IPv6), and perhaps a port: what both Kafka clients read the same way.
_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]]+)(?::([0-9]{1,5}))?")


def _is_address(text: str) -> bool:
    found = _ADDRESS.fullmatch(text)
    return found is not None and 0 < int(found[1] or 1) <= 65_535


# ── rows ──


def form_of(output: OutputForm | None) -> OutputForm:
    """The form asked for, or the one that suits where stdout goes."""
    if output is not None:
        return output
    return OutputForm.TABLE if sys.stdout.isatty() else OutputForm.JSONL


def as_json(row: Any) -> str:
    return plain.printable_json(json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str))


def print_rows(rows: Iterable[Row], columns: Sequence[str], output: OutputForm | None = None) -> int:
    """Print rows as asked; `columns` are those of the table (JSON prints rows whole). Returns how many there were."""
    form = form_of(output)
    if form is OutputForm.JSONL:
        count = 0
        for row in rows:
            print(as_json(row), flush=True)
            count += 1
        return count
    listed = list(rows)
    if form is OutputForm.JSON:
        print("[" + ",\n ".join(as_json(row) for row in listed) + "]", flush=True)
    else:
        _print_table(listed, columns)
    return len(listed)


def print_object(row: Row, output: OutputForm | None = None) -> None:
    """Print one object: a table of its members, or the object itself as JSON."""
    form = form_of(output)
    if form is OutputForm.TABLE:
        _print_table([{"member": name, "value": value} for name, value in row.items()], ["member", "value"])
    else:
        laid_out = json.dumps(row, ensure_ascii=False, indent=2, default=str)
        print(plain.printable_json(laid_out) if form is OutputForm.JSON else as_json(row))


def line_printer(columns: Mapping[str, int], output: OutputForm | None = None) -> Callable[[Row], None]:
    """A printer for rows that keep coming: a table of fixed column widths, else one JSON object a line."""
    if form_of(output) is not OutputForm.TABLE:
        return lambda row: print(as_json(row), flush=True)
    print("  ".join(name.ljust(width) for name, width in columns.items()).rstrip().upper(), flush=True)

    def print_line(row: Row) -> None:
        cells = [cell_of(row.get(name)).ljust(width) for name, width in columns.items()]
        print("  ".join(cells).rstrip(), flush=True)

    return print_line


def cell_of(value: Any) -> str:
    """A value as a table shows it: control characters, which a stranger may have sent, never reach the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        text = ", ".join(value) or "-"
    else:
        text = value if isinstance(value, str) else as_json(value)
    return plain.printable(text)


def _print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_of(row.get(name))) for name in columns))
    # Off a terminal (-o table into a file) nothing is wrapped to a width nobody has.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


# ── running and failing ──

_reached: Final[list[Kafka]] = []  # the clusters this process was told of: errors name them


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; Ctrl-C and SIGTERM cancel it, so that its `finally` blocks close what is open, then exit 130.

    A command that handles SIGTERM itself keeps its handler: the loop would put the default in its place at the end.
    """
    import asyncio  # a fifth of what `--help` would take

    async def cancellable() -> T:
        task = asyncio.current_task()
        if task is not None and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    for library in ("aiokafka", "asyncio"):  # what they log of a failure, we say ourselves
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        return asyncio.run(cancellable())
    except Interrupted:
        raise
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(INTERRUPTED) from None


# Errors of ours whose message is such a sentence already; named, so that nothing heavy is imported for them.
_OURS: Final = {
    "ConfigError": USAGE, "KeystoreError": FAILED, "LocalKafkaError": FAILED, "RegistryError": FAILED,
    "RevocationsError": FAILED, "TopicsError": FAILED, "OffsetGone": FAILED, "Unreadable": FAILED,
}  # fmt: skip


def sentence_of(error: BaseException) -> tuple[str, int] | None:
    """What to tell about an expected error and the exit code, or None: then it is a bug of ours."""
    kind = type(error)
    if kind.__module__.startswith("app.") and kind.__name__ in _OURS:
        return str(error), _OURS[kind.__name__]
    for module, translate in (("aiokafka", _of_aiokafka), ("confluent_kafka", _of_confluent), ("cimpl", _of_confluent)):
        if kind.__module__.partition(".")[0] == module:
            return translate(error)
    if isinstance(error, TimeoutError):
        return f"Kafka did not answer in time ({error or 'no answer'}); is the broker overloaded or away?", TIMED_OUT
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", FAILED
    return None


_UNREACHABLE: Final = (
    "no Kafka broker answers at {bootstrap} ({error}): start one with `tollgate broker`, or name yours with "
    "--bootstrap or TOLLGATE_BOOTSTRAP; one that asks for TLS or SASL does not answer without: kafka.security_protocol"
)
_NOT_SECURED: Final = (
    "no secure connection to {bootstrap} came about ({error}): check kafka.security_protocol, kafka.ssl_cafile, and "
    "kafka.ssl_certfile with kafka.ssl_keyfile if the broker asks for a certificate"
)
_NOT_AUTHENTICATED: Final = (
    "the broker refused our credentials ({error}): check kafka.security_protocol, kafka.sasl_mechanism, "
    "kafka.sasl_username and kafka.sasl_password_file"
)
_NOT_AUTHORIZED: Final = "the broker does not allow us this ({error}): ask its operators for an ACL"
_NO_TOPIC: Final = (
    "a topic is missing ({error}): create the topics with `tollgate topics create`, or check --prefix with "
    "`tollgate topics check`"
)


def _of_aiokafka(error: BaseException) -> tuple[str, int]:
    from aiokafka import errors

    text = str(error) or type(error).__name__
    match error:
        case (
            errors.AuthenticationFailedError()
            | errors.SaslAuthenticationFailed()
            | errors.UnsupportedSaslMechanismError()
        ):
            return _NOT_AUTHENTICATED.format(error=text), NOT_ALLOWED
        case (
            errors.TopicAuthorizationFailedError()
            | errors.GroupAuthorizationFailedError()
            | errors.ClusterAuthorizationFailedError()
            | errors.TransactionalIdAuthorizationFailed()
        ):
            return _NOT_AUTHORIZED.format(error=text), NOT_ALLOWED
        case errors.UnknownTopicOrPartitionError():
            return _NO_TOPIC.format(error=text), FAILED
        case errors.KafkaConnectionError() | errors.NodeNotReadyError() | errors.KafkaTimeoutError():
            return _asked_again() or (_UNREACHABLE.format(bootstrap=_brokers(), error=text), FAILED)
    return f"Kafka: {text}", FAILED


def _brokers() -> str:
    return _reached[-1].bootstrap if _reached else ""


def _asked_again() -> tuple[str, int] | None:
    """Why a secured cluster cannot be reached: aiokafka only logs that a login or a handshake failed."""
    if not _reached or _reached[-1].security_protocol == "PLAINTEXT":
        return None
    from confluent_kafka import KafkaException

    from app.stream.inspection import connect

    try:
        connect(_reached[-1])
    except KafkaException as cause:
        return _of_confluent(cause)
    return None


def _of_confluent(error: BaseException) -> tuple[str, int]:
    from confluent_kafka import KafkaError

    told = error.args[0] if error.args and isinstance(error.args[0], KafkaError) else None
    if told is None:
        return f"Kafka: {error}", FAILED
    text = told.str()
    match told.code():
        case KafkaError._AUTHENTICATION | KafkaError.SASL_AUTHENTICATION_FAILED:  # noqa: SLF001 - its public names
            return _NOT_AUTHENTICATED.format(error=text), NOT_ALLOWED
        case (
            KafkaError.TOPIC_AUTHORIZATION_FAILED
            | KafkaError.GROUP_AUTHORIZATION_FAILED
            | KafkaError.CLUSTER_AUTHORIZATION_FAILED
            | KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        ):
            return _NOT_AUTHORIZED.format(error=text), NOT_ALLOWED
        case KafkaError.UNKNOWN_TOPIC_OR_PART | KafkaError._UNKNOWN_TOPIC:  # noqa: SLF001
            return _NO_TOPIC.format(error=text), FAILED
        case KafkaError._SSL:  # noqa: SLF001
            return _NOT_SECURED.format(bootstrap=_brokers(), error=text), FAILED
        case KafkaError._TRANSPORT | KafkaError._ALL_BROKERS_DOWN | KafkaError._TIMED_OUT | KafkaError._RESOLVE:  # noqa: SLF001
            return _UNREACHABLE.format(bootstrap=_brokers(), error=text), FAILED
    return f"Kafka: {text}", FAILED
