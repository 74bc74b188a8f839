"""`tollgate up`: everything on one machine, left running: Kafka, topics, keys, sample jobs, a gate, the HTTP door."""

from __future__ import annotations

import fcntl
import os
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple, NoReturn

import typer

from app.cli import common, samples
from app.cli.common import Bootstrap, Prefix
from app.cli.environment import Environment
from app.cli.stopping import Interrupted, interrupt_on_signals

if TYPE_CHECKING:
    from app.config import Settings
    from app.local.kafka import LocalKafka
    from app.local.process import BrokerProcess
    from app.registry import Change

app = common.new_app()

STATE_DIR: Final = Path(".tollgate")
KAFKA_PORT: Final = 9092  # where one looks for a Kafka first
DEFAULT_PROBES_PORT: Final = 9464
DEFAULT_DOOR_PORT: Final = 8080
LAST_PORT: Final = 65_535
READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
WATCH_INTERVAL_S: Final = 0.3
READY_POLL_S: Final = 0.1
LOCK_FILE: Final = ".up.lock"

TRY_NEXT: Final = """\
Everything is up. In another terminal:

  . {env}
  tollgate token issue --job reports/nightly --ttl 5m > {token}
  tollgate emit reports/nightly --param region=eu --token-file {token} --wait   # accepted: a job starts
  tollgate emit reports/nightly --param region=eu --token-file {token} --wait   # the same again: a duplicate
  tollgate emit reports/nightly --param region=us --token-file {token} --wait   # the token used for something else
  (printf 'authorization: Bearer '; cat {token}) > {token}.header
  curl -H @{token}.header -H 'prefer: wait=5' -H 'content-type: application/json' -d '{{"region": "eu"}}' \\
    {door}/v1/triggers/reports/nightly                                # over HTTP, too: a duplicate
  tollgate jobs tail
  tollgate dead-letters list
  tollgate audit verify
  tollgate doctor

The HTTP door is described at {door}/docs. Sample jobs: {jobs}. Logs: {logs}. Ctrl-C stops everything."""


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
    three sample jobs, a gate, the HTTP door. Prints what to try next; Ctrl-C
    stops all.

    Example: tollgate up
    """
    interrupt_on_signals()
    ready = False
    with ExitStack() as stack:
        try:
            env = _claim(stack, state.absolute())
            kafka = _start_kafka(stack, env, state.absolute(), port, bootstrap)
            settings = common.settings_of(prefix=prefix)
            env.set("TOLLGATE_PREFIX", settings.kafka.prefix)
            _set_up(settings, state.absolute(), lanes)
            parts = [
                _start_gate(stack, settings, state.absolute() / "gate.log", workers),
                _start_door(stack, settings, state.absolute() / "serve.log"),
            ]
            _await_ready(parts, kafka)
            ready = True
            env.write()
            serve = common.settings_of().serve
            told = {
                "env": _short(env.file), "jobs": _short(state / "jobs.toml"), "token": _short(state / "token"),
                "door": f"http://{_reached_at(serve.host)}:{serve.port}",
                "logs": ", ".join(_short(part.process.log_file) for part in parts),
            }  # fmt: skip
            common.say(TRY_NEXT.format(**told))
            _watch(parts, kafka)
        except Interrupted as told:
            if not ready:
                common.fail("stopping before everything is up ...", told.code)
            common.say("stopping the door and the gate, then Kafka ...")
    common.say("stopped")


# ── the parts, in the order they start ──


def _claim(stack: ExitStack, state: Path) -> Environment:
    """Everything of this stack stands in one directory, ours alone, but for what the user put elsewhere."""
    env = Environment(state / "env")
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((state / LOCK_FILE).open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        common.fail(
            f"another `tollgate up` runs in {_short(state)}: stop that one, or choose another directory by --state"
        )
    stack.callback(env.forget)
    env.forget()  # that of one which was killed
    env.set_default("issuer", "keys_dir", state / "keys")
    env.set_default("issuer", "jwks_file", state / "jwks.json")
    env.set_default("gate", "state_dir", state / "state")
    env.set_default("gate", "sealing_key", state / "sealing" / "public.jwk")
    return env


def _start_kafka(
    stack: ExitStack, env: Environment, state: Path, port: int | None, bootstrap: str | None
) -> LocalKafka | None:
    """A local Kafka, or None where an address was given: by an option, the environment or tollgate.toml."""
    from app import config
    from app.local.kafka import KAFKA_VERSION, LocalKafka, LocalKafkaError
    from app.local.ports import is_free, port_of

    settings = common.settings_of(bootstrap)
    own = env.own_address()
    if bootstrap is None and settings.kafka.bootstrap == own and is_free(port_of(own)):
        # This shell has our env file from a stack that is gone: its clients go on with the address if it can be kept.
        port = port_of(own) if port is None else port
    elif bootstrap is not None or config.is_given("kafka", "bootstrap"):
        env.set("TOLLGATE_BOOTSTRAP", settings.kafka.bootstrap)
        return None
    if port is None:
        port = KAFKA_PORT if is_free(KAFKA_PORT) else 0
    common.say(f"starting Apache Kafka {KAFKA_VERSION} ...")
    data = settings.local.data_dir if config.is_given("local", "data_dir") else state / "kafka"
    kafka = LocalKafka(data, port=port, cache_dir=settings.local.cache_dir, say=common.say)
    stack.callback(kafka.stop)
    try:
        kafka.start()
    except LocalKafkaError as error:
        common.fail(str(error))
    env.set("TOLLGATE_BOOTSTRAP", kafka.bootstrap)
    env.remember_address(kafka.bootstrap)
    return kafka


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
    common.say(f"jobs and trust rules: {_short(jobs)}, {_short(trust)}")
    for change in common.run(registry.add_missing(settings, definitions)):
        if change.action == "changed":
            _tell_kept(change, _short(jobs if change.kind == "jobs" else trust))


def _tell_kept(change: Change, file: str) -> None:
    """Who runs this against a cluster of others must not alter what they rely on."""
    if change.kind == "jobs":
        common.say(
            f"WARNING: the registry has another job {change.name} than {file}; it stays as it is "
            f"(`tollgate jobs apply {file}` changes it)"
        )
    else:
        common.say(
            f"WARNING: the registry has another trust rule for {change.name} than {file}; it stays as it is, so gates "
            f"may refuse tokens that are issued here: set TOLLGATE_ISSUER__ISSUER to a name of your own, or, if the "
            f"rule is yours to change, `tollgate trust apply {file}`"
        )


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


class _Part(NamedTuple):
    """One of our programs: what it is called, its process, and where it says whether it is ready."""

    name: str
    process: BrokerProcess
    probes: list[str]


def _start_gate(stack: ExitStack, settings: Settings, log_file: Path, workers: int) -> _Part:
    telemetry = settings.telemetry
    port = _free_ports_from(telemetry.port or DEFAULT_PROBES_PORT, workers, "TOLLGATE_TELEMETRY__PORT")
    # Not for other terminals: a second gate there needs ports of its own.
    os.environ["TOLLGATE_TELEMETRY__PORT"] = str(port)
    process = _start(stack, log_file, "gate", "--workers", str(workers))
    return _Part("the gate", process, [f"http://{telemetry.host}:{port + index}/readyz" for index in range(workers)])


def _start_door(stack: ExitStack, settings: Settings, log_file: Path) -> _Part:
    serve = settings.serve
    port = _free_ports_from(serve.port or DEFAULT_DOOR_PORT, 1, "TOLLGATE_SERVE__PORT")
    internal = _free_ports_from(max(serve.internal_port, port + 1), 1, "TOLLGATE_SERVE__INTERNAL_PORT")
    os.environ["TOLLGATE_SERVE__PORT"], os.environ["TOLLGATE_SERVE__INTERNAL_PORT"] = str(port), str(internal)
    process = _start(stack, log_file, "serve")
    return _Part("the HTTP door", process, [f"http://{serve.internal_host}:{internal}/readyz"])


def _reached_at(host: str) -> str:
    return "localhost" if host in ("0.0.0.0", "::") else host  # noqa: S104 - what is listened on everywhere


def _start(stack: ExitStack, log_file: Path, *words: str) -> BrokerProcess:
    from app.local.process import BrokerProcess

    command = [sys.executable, "-m", "app.cli.main", *words]
    process = BrokerProcess(command, log_file, tethered=True, inherited=())

    def stop() -> None:
        process.ask_to_stop()
        process.wait_stopped(STOP_TIMEOUT_S)

    stack.callback(stop)
    return process


def _free_ports_from(first: int, count: int, setting: str) -> int:
    """Where `count` ports in a row are free: another stack may have the usual ones."""
    from app.local.ports import is_free

    starts = range(first, LAST_PORT - count, count)
    found = next((start for start in starts if all(is_free(start + n) for n in range(count))), None)
    if found is None:
        common.fail(f"no {count} free port(s) from {first} on: set {setting}")
    return found


def _await_ready(parts: list[_Part], kafka: LocalKafka | None) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    common.say("starting the gate and the HTTP door ...")
    for part in parts:
        for url in part.probes:
            while not _answers(url):
                time.sleep(READY_POLL_S)
                _fail_if_kafka_died(kafka)
                _fail_if_ended(parts, "did not start")
                if time.monotonic() > deadline:
                    common.fail(
                        f"{part.name} was not ready within {READY_TIMEOUT_S:.0f} s; its log: {part.process.log_file}"
                    )


def _watch(parts: list[_Part], kafka: LocalKafka | None) -> NoReturn:
    """Until a signal interrupts it, or a part ends by itself."""
    while True:
        time.sleep(WATCH_INTERVAL_S)
        _fail_if_kafka_died(kafka)
        _fail_if_ended(parts, "ended")


def _fail_if_ended(parts: list[_Part], how: str) -> None:
    for part in parts:
        if not part.process.is_alive:
            common.fail(f"{part.name} {how}: {part.process.cause_of_death()}; its log: {part.process.log_file}")


def _fail_if_kafka_died(kafka: LocalKafka | None) -> None:
    died = None if kafka is None else kafka.dead_node()
    if died is not None:
        common.fail(died)


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
