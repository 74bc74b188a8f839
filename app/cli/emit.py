"""`tollgate emit`: publish triggers as any Kafka client could, and, if asked, wait for their receipts."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from app.cli import common, given
from app.cli.common import Bootstrap, Output, Prefix
from app.emission import Emission, Form, Trigger, trigger_of
from app.gate.jws import unverified_claims

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

    from app.config import Settings

app = common.new_app()

TOPIC_TIMEOUT_S: Final = 5.0
UNACKNOWLEDGED_MAX: Final = 5_000
LISTED_ON_A_TERMINAL: Final = 20  # more ids than that are asked for with -o
PLACE: Final = "{n}"  # in a key: the number of the trigger under --count
SENT_COLUMNS: Final = ("trigger_id", "correlation_id", "appended_at_ms")
RECEIPT_COLUMNS: Final = ("trigger_id", "outcome", "run_id", "job", "reason", "detail")


@app.command()
def emit(
    job: Annotated[str | None, typer.Argument(help="may be left out when the token grants exactly one")] = None,
    *,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=TEXT|NAME:=JSON", help="one parameter; repeatable")
    ] = None,
    params_file: Annotated[
        Path | None, typer.Option(help="JSON file with the parameters; --param wins over it", show_default=False)
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="holds the token (several lines: used in turn); - is stdin; default TOLLGATE_TOKEN in the environment",
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="the same key starts one job; {n} is the number under --count", show_default=False),
    ] = None,
    correlation_id: Annotated[
        str | None, typer.Option(help="echoed in the receipt; {n} likewise", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="how many triggers to send")] = 1,
    rate: Annotated[
        float | None, typer.Option(min=0.001, callback=given.finite, help="triggers per second", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait for the receipts and print them")] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, callback=given.finite, help="seconds to --wait after the last send")
    ] = 30,
    form: Annotated[Form, typer.Option(help="how the trigger is written")] = Form.JSON,
    key: Annotated[
        str | None,
        typer.Option(help="Kafka key; default the idempotency key or jti, which is home's", show_default=False),
    ] = None,
    output: Output = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Publish a trigger; prints its id, or with --wait its receipt.

    Exits 0 when accepted or a duplicate, 3 when some were rejected,
    124 when a receipt did not come in time.

    Example: tollgate emit reports/nightly --param n=1 --token-file t.jwt --wait
    """
    settings = common.settings_of(bootstrap, prefix)
    tokens = read_tokens(token_file)
    if job is None and form is not Form.JSON:
        common.fail(f"the form {form} needs a JOB: it is what marks the value as parameters", common.USAGE)
    emission = Emission(form, job, given.params(param or [], params_file), idempotency_key, correlation_id, key)
    if idempotency_key is None and _starts_anew(tokens[0]):
        common.say("note: a token of many uses and no --idempotency-key: sent again, it starts a new run")
    triggers = (numbered(emission, tokens[n % len(tokens)], n) for n in range(count))
    common.run(_emit(settings, triggers, count=count, rate=rate, wait_s=timeout if wait else None, output=output))


# ── what is sent ──


def read_tokens(token_file: str | None) -> list[str]:
    """The tokens, never from an argument: a process list would show it."""
    tokens, where = given.tokens(token_file)
    if not tokens:
        common.fail(f"no token in {where}: give --token-file FILE, or - for stdin", common.USAGE)
    return tokens


def numbered(emission: Emission, token: str, number: int) -> Trigger:
    """The record for the trigger of this number."""
    key, correlation_id = _numbered(emission.idempotency_key, number), _numbered(emission.correlation_id, number)
    return trigger_of(emission._replace(idempotency_key=key, correlation_id=correlation_id), token)


def _starts_anew(token: str) -> bool:
    claims = unverified_claims(token)
    return claims.get("uses") == "many" and "idempotency_key" not in claims


def _numbered(text: str | None, number: int) -> str | None:
    return None if text is None else text.replace(PLACE, str(number))


# ── sending ──


async def _emit(
    settings: Settings,
    triggers: Iterator[Trigger],
    *,
    count: int,
    rate: float | None,
    wait_s: float | None,
    output: common.OutputForm | None,
) -> None:
    from aiokafka import AIOKafkaProducer

    from app.cli.reading import reader, wait_for_receipts
    from app.gate.reasons import BY_CODE
    from app.stream.connect import client_options
    from app.stream.topics import Topic

    async with AsyncExitStack() as stack:
        # The reader stands at the end before anything is sent: no receipt can pass it by.
        opened = await stack.enter_async_context(reader(settings, Topic.RECEIPTS, at_end=True)) if wait_s else None
        producer = AIOKafkaProducer(**client_options(settings.kafka), acks="all", enable_idempotence=True)
        await producer.start()
        stack.push_async_callback(producer.stop)
        topic = Topic.TRIGGERS.named(settings.kafka.prefix)
        await _require(producer, topic)
        sent = await _send(producer, topic, triggers, count, rate)
        if opened is None or wait_s is None:
            _print_sent(sent, output)
            return
        receipts: list[dict[str, Any]] = []
        ids = [row["trigger_id"] for row in sent]
        missing = await wait_for_receipts(opened, ids, wait_s, receipts.append)
    places = {trigger_id: place for place, trigger_id in enumerate(ids)}
    receipts.sort(key=lambda receipt: places[receipt["trigger_id"]])
    common.print_rows(receipts, RECEIPT_COLUMNS, output)
    if missing:
        common.fail(f"no receipt within {wait_s:g} s for {len(missing)} trigger(s), such as {min(missing)}: is a gate "
                    "running? `tollgate doctor` tells", common.TIMED_OUT)  # fmt: skip
    rejected = sum(receipt["outcome"] == "rejected" for receipt in receipts)
    if rejected:
        for code in sorted({receipt["reason"] for receipt in receipts if receipt["reason"] in BY_CODE}):
            common.say(f"{code}: {BY_CODE[code].meaning}; {BY_CODE[code].remedy}")
        common.fail(f"{rejected} of {len(ids)} rejected", common.SOME_FAILED)


async def _require(producer: AIOKafkaProducer, topic: str) -> None:
    from aiokafka import errors

    try:
        await asyncio.wait_for(producer.partitions_for(topic), TOPIC_TIMEOUT_S)
    except TimeoutError:
        raise errors.UnknownTopicOrPartitionError(topic) from None


async def _send(
    producer: AIOKafkaProducer, topic: str, triggers: Iterator[Trigger], count: int, rate: float | None
) -> list[dict[str, Any]]:
    """Send all, in order and at the rate; returns their coordinates once every one is acknowledged."""
    waiting: list[tuple[Trigger, asyncio.Future[Any]]] = []
    sent: list[dict[str, Any]] = []
    started = time.monotonic()
    with _progress(count) as advance:

        async def settle() -> None:
            for trigger, future in waiting:
                metadata = await future
                row = {
                    "trigger_id": f"{metadata.partition}-{metadata.offset}",
                    "correlation_id": trigger.correlation_id,
                    "appended_at_ms": metadata.timestamp,
                }
                sent.append(row)
            advance(len(waiting))
            waiting.clear()

        for number, trigger in enumerate(triggers):
            if rate is not None and (ahead_s := started + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(ahead_s)
            future = await producer.send(topic, trigger.value, trigger.key, headers=trigger.headers)
            waiting.append((trigger, future))
            if len(waiting) >= (UNACKNOWLEDGED_MAX if rate is None else max(1, min(UNACKNOWLEDGED_MAX, int(rate)))):
                await settle()
        await settle()
    return sent


def _print_sent(sent: list[dict[str, Any]], output: common.OutputForm | None) -> None:
    if output is None and sys.stdout.isatty() and len(sent) > LISTED_ON_A_TERMINAL:
        common.say(f"sent {len(sent)} triggers, {sent[0]['trigger_id']} to {sent[-1]['trigger_id']} (-o lists them)")
        return
    common.print_rows(sent, SENT_COLUMNS, output)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal when there is something to watch."""
    if count <= LISTED_ON_A_TERMINAL or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("sending", total=count)
        yield lambda n: progress.advance(task, n)
