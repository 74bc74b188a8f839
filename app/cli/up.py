"""`tollgate up`: everything on one machine, left running: Kafka, topics, keys, sample jobs, a gate."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from app.cli import common, samples
from app.cli.common import Bootstrap, Prefix

if TYPE_CHECKING:
    from app.config import Settings
    from app.local.process import BrokerProcess

app = common.new_app()

STATE_DIR: Final = Path(".tollgate")
KAFKA_PORT: Final = 9092  # where one looks for a Kafka first
DEFAULT_PROBES_PORT: Final = 9464
LAST_PORT: Final = 65_535
READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
WATCH_INTERVAL_S: Final = 0.3

TRY_NEXT: Final = """\
Everything is up. In another terminal:

  . {env}
  tollgate token issue --job reports/nightly --ttl 5m > t.jwt
  tollgate emit reports/nightly --param region=eu --token-file t.jwt --wait   # accepted: a job starts
  tollgate emit reports/nightly --param region=eu --token-file t.jwt --wait   # the same again: a duplicate
  tollgate emit reports/nightly --param region=us --token-file t.jwt --wait   # the token used for something else
  tollgate jobs tail
  tollgate dead-letters list
  tollgate audit verify
  tollgate doctor

Sample jobs: {jobs}. Gate's log: {log}. Ctrl-C stops everything."""


@app.command()
def up(
    *,
    state: Annotated[Path, typer.Option(help="keys, samples, logs and the local Kafka's data")] = STATE_DIR,
    lanes: Annotated[int | None, typer.Option(min=1, max=1024, show_default=False, help="default 12; final")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes of the gate")] = 1,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, show_default=False, help="of the local Kafka; default 9092 or free")
    ] = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Start the whole stack on this machine and leave it running.

    A local Kafka (unless --bootstrap names one), the topics, signing keys,
    three sample jobs, a gate. Prints what to try next; Ctrl-C stops all.

    Example: tollgate up
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        # They stay in place while stopping: a second Ctrl-C must not leave half of it running.
        signal.signal(number, lambda _number, _frame: stopping.set())
    with ExitStack() as stack:
        env = Environment(state.absolute() / "env")
        stack.callback(env.forget)
        _choose_files(env, state.absolute())
        local = _start_kafka(stack, state.absolute(), port, given=bootstrap or os.environ.get("TOLLGATE_BOOTSTRAP"))
        env.set("TOLLGATE_BOOTSTRAP", local or bootstrap)
        env.set("TOLLGATE_PREFIX", prefix)
        settings = common.settings_of()
        _set_up(settings, state.absolute(), lanes)
        gate = _start_gate(stack, settings, state.absolute() / "gate.log", workers)
        if not _await_ready(_probes(common.settings_of(), workers), gate, stopping):
            return
        env.write()
        common.say(TRY_NEXT.format(env=_short(env.file), jobs=_short(state / "jobs.toml"), log=_short(gate.log_file)))
        while not stopping.wait(WATCH_INTERVAL_S):
            if not gate.is_alive:
                common.fail(f"the gate ended: {gate.cause_of_death()}; its log: {gate.log_file}")
        common.say("stopping the gate, then Kafka ...")
    common.say("stopped")


class Environment:
    """Settings that differ from their defaults: given to our children, and written down for other terminals."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._set: dict[str, str] = {}

    def set(self, name: str, value: str | Path | None) -> None:
        """Nothing given, or set outside already (then only written down): what the user says wins."""
        if value is not None:
            os.environ[name] = str(value)
        if name in os.environ:
            self._set[name] = os.environ[name]

    def set_default(self, name: str, value: str | Path) -> None:
        self.set(name, None if name in os.environ else value)

    def write(self) -> None:
        """Its presence means: everything is up."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self._set.items()]
        self.file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)


# ── the parts, in the order they start ──


def _choose_files(env: Environment, state: Path) -> None:
    """Everything of this stack stands in one directory, but for what the user put elsewhere."""
    state.mkdir(parents=True, exist_ok=True)
    env.forget()
    env.set_default("TOLLGATE_ISSUER__KEYS_DIR", state / "keys")
    env.set_default("TOLLGATE_ISSUER__JWKS_FILE", state / "jwks.json")
    env.set_default("TOLLGATE_GATE__STATE_DIR", state / "state")
    env.set_default("TOLLGATE_GATE__SEALING_KEY", state / "sealing" / "public.jwk")


def _start_kafka(stack: ExitStack, state: Path, port: int | None, *, given: str | None) -> str | None:
    """The address of a local Kafka, or None when one was named."""
    if given is not None:
        return None
    from app.local.kafka import KAFKA_VERSION, LocalKafka, LocalKafkaError
    from app.local.ports import is_free

    if port is None:
        port = KAFKA_PORT if is_free(KAFKA_PORT) else 0
    common.say(f"starting Apache Kafka {KAFKA_VERSION} ...")
    cache_dir = common.settings_of().local.cache_dir
    kafka = LocalKafka(state / "kafka", port=port, cache_dir=cache_dir, say=common.say)
    try:
        kafka.start()
    except LocalKafkaError as error:
        common.fail(str(error))
    stack.callback(kafka.stop)
    return kafka.bootstrap


def _set_up(settings: Settings, state: Path, lanes: int | None) -> None:
    """Topics, keys, samples: each only where it is missing."""
    from app import registry
    from app.stream import administration

    created = administration.create_topics(settings, lanes)
    if created.checked.deployment is None:
        common.fail(created.checked.complaint)
    common.say(f"topics {settings.kafka.prefix}*: {created.checked.deployment.lanes} lanes")
    _make_keys(settings)
    jobs, trust = state / "jobs.toml", state / "trust.toml"
    samples.write_once(jobs, samples.JOBS.format(file=_short(jobs)))
    issuer = settings.issuer
    samples.write_once(
        trust,
        samples.TRUST.format(
            file=_short(trust), issuer=issuer.issuer, jwks=issuer.jwks_file.absolute(), org=issuer.org_id
        ),
    )
    definitions = [*registry.read_definitions(jobs, "jobs"), *registry.read_definitions(trust, "trust")]
    common.run(registry.apply(settings, definitions, dry_run=False))
    common.say(f"jobs and trust rules: {_short(jobs)}, {_short(trust)}")


def _make_keys(settings: Settings) -> None:
    from app.cli.sealing_keys import make_sealing_keys
    from app.issuer.keystore import Keystore

    store = Keystore(settings.issuer.keys_dir, settings.issuer.jwks_file)
    if all(record.removed_s is not None for record in store.records()):
        store.generate("ES256", int(time.time()))
    else:
        store.publish()
    sealing = settings.gate.sealing_key
    if sealing is not None and not sealing.exists():
        make_sealing_keys(sealing.with_name("private.jwk"), sealing)
    common.say(f"keys: {_short(settings.issuer.jwks_file)}")


def _start_gate(stack: ExitStack, settings: Settings, log_file: Path, workers: int) -> BrokerProcess:
    from app.local.process import BrokerProcess

    # Not for other terminals: a second gate there needs ports of its own.
    os.environ["TOLLGATE_TELEMETRY__PORT"] = str(_free_ports_from(settings.telemetry.port, workers))
    command = [sys.executable, "-m", "app.cli.main", "gate", "--workers", str(workers)]
    gate = BrokerProcess(command, log_file, tethered=True, inherited=())

    def stop() -> None:
        gate.ask_to_stop()
        gate.wait_stopped(STOP_TIMEOUT_S)

    stack.callback(stop)
    return gate


def _free_ports_from(first: int, count: int) -> int:
    """Where `count` ports in a row are free: another gate may have the usual ones."""
    from app.local.ports import is_free

    starts = range(first or DEFAULT_PROBES_PORT, LAST_PORT - count, count)
    found = next((start for start in starts if all(is_free(start + n) for n in range(count))), None)
    if found is None:
        common.fail(f"no {count} free port(s) for the gate's probes from {first} on: set TOLLGATE_TELEMETRY__PORT")
    return found


def _probes(settings: Settings, workers: int) -> list[str]:
    """Where each worker says whether it is ready."""
    host, port = settings.telemetry.host, settings.telemetry.port
    return [f"http://{host}:{port + index}/readyz" for index in range(workers)]


def _await_ready(urls: list[str], gate: BrokerProcess, stopping: threading.Event) -> bool:
    deadline = time.monotonic() + READY_TIMEOUT_S
    common.say("starting the gate ...")
    for url in urls:
        while not _answers(url):
            if stopping.wait(0.1):
                return False
            if not gate.is_alive:
                common.fail(f"the gate did not start: {gate.cause_of_death()}; its log: {gate.log_file}")
            if time.monotonic() > deadline:
                common.fail(f"the gate was not ready within {READY_TIMEOUT_S:.0f} s; its log: {gate.log_file}")
    return True


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own, on this machine
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _short(path: Path) -> str:
    """As one would type it from here."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
