"""A world's history in words: what everyone sent, what came of it, and what went wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from aiokafka.errors import for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest

from tests.simulation.traffic import PREFIX
from tests.simulation.wire import Fate, Verdict
from tests.simulation.world import World


def lines(world: World) -> Iterator[str]:
    for at_s, who, what in world.journal:
        if any(isinstance(part, FetchRequest | OffsetRequest) for part in what):
            continue  # polls, by the hundred
        yield f"{at_s * 1000:10.2f} ms  {who:10}  {' '.join(_said(part) for part in what)}"


def _said(part: Any) -> str:
    match part:
        case InitProducerIdRequest():
            return f"InitProducerId({_short(part._transactional_id)})"
        case AddPartitionsToTxnRequest():
            named = [f"{_short(topic)}{numbers}" for topic, numbers in part._topics]
            return f"AddPartitions({_writer(part)}, {' '.join(named)})"
        case ProduceRequest():
            return f"Produce({_short(part._transactional_id or '-')}, {' '.join(_batches(part))})"
        case EndTxnRequest():
            return f"EndTxn({_writer(part)}, {'commit' if part._transaction_result else 'abort'})"
        case Verdict():
            if part.fate is Fate.PASS:
                return ""
            return f"… {part.fate.name}" + (f" for {part.held_s * 1000:.0f} ms" if part.held_s else "")
        case str():
            return part
    return _answer(part)


def _writer(request: Any) -> str:
    return f"{_short(request._transactional_id)} epoch {request._producer_epoch}"


def _batches(request: ProduceRequest) -> Iterator[str]:
    for topic, rows in request._topics:
        for number, raw in rows:
            epoch, _, count = struct.unpack_from(">hii", raw, 51)
            yield f"{_short(topic)}[{number}] {count} epoch {epoch}"


def _answer(part: Any) -> str:
    """Error codes by their names."""
    if hasattr(part, "error_code"):
        given = f" epoch {part.producer_epoch}" if hasattr(part, "producer_epoch") and not part.error_code else ""
        return f"→ {_code(part.error_code)}{given}"
    if hasattr(part, "errors"):
        return f"→ {_code(max(code for _, rows in part.errors for _, code in rows))}"
    if hasattr(part, "topics"):
        placed = [
            f"{_short(topic)}[{row[0]}] {_code(row[1])} at {row[2]}" for topic, rows in part.topics for row in rows
        ]
        return f"→ {', '.join(placed)}"
    return str(part)


def _code(code: int) -> str:
    return "done" if not code else str(for_code(code).__name__)


def _short(name: str) -> str:
    return name.removeprefix(PREFIX)
