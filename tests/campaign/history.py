"""A stage on disk: whatever was judged is saved as it was read, and can be judged again with no broker there.

`scripts/campaign --judge DIR` does so. Beside these files lie the ledger, the journals, the logs and the local stores.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tests.campaign.case import Evidence, GateTraces, OnBrokers, Strike, Topics
from tests.campaign.journals import Journals
from tests.campaign.stage import LEDGER, Stage
from tests.support import reader
from tests.support.invariants import Read, Seen, Sent
from tests.support.reader import Isolation

ABOUT, SEEN, TAKEN = "history.json", "seen.jsonl.gz", "taken.jsonl.gz"
ISOLATIONS: tuple[Isolation, ...] = ("read_committed", "read_uncommitted")


def save(evidence: Evidence, topics: Topics, directory: Path) -> None:
    """All that the judge asks for: of triggers the keys, of what is not committed the places."""
    for name in Seen.topics():
        topic = name.replace("_", "-")
        for isolation in ISOLATIONS:
            told = topics.read(topic, isolation, lean=isolation == "read_uncommitted" or name == "triggers")
            _write(_file(directory, topic, isolation), [{"ends": _pairs(told.ends), "highs": _pairs(told.highs)}], (
                _place(record) if isolation == "read_uncommitted" else _row(record) for record in told.records
            ))  # fmt: skip
    _write(directory / SEEN, ([topic, *each] for topic, places in evidence.seen.items() for each in places.items()))
    _write(directory / TAKEN, (uid.decode() for uid in sorted(evidence.taken)))
    about = {
        "prefix": evidence.prefix, "gates": [gate.name for gate in evidence.gates], "watched": list(evidence.seen),
        "changed": list(evidence.changed), "reader_error": evidence.reader_error, "broken": list(evidence.broken),
        "strikes": [strike._asdict() for strike in evidence.strikes],
    }  # fmt: skip
    (directory / ABOUT).write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))


def saved(directory: Path) -> tuple[Evidence, Topics]:
    """What `save` wrote. Raises FileNotFoundError when nothing was saved there."""
    about = orjson.loads((directory / ABOUT).read_bytes())
    journals = Journals(directory)
    journals.update()
    seen: dict[str, dict[int, int]] = {topic: {} for topic in about["watched"]}
    for topic, place, digest in _lines(directory / SEEN):
        seen[topic][place] = digest
    gates = [GateTraces(name, directory / f"{name}-state", directory / f"{name}.log") for name in about["gates"]]
    evidence = Evidence(
        about["prefix"], journals, gates, dict(_ledger(directory / LEDGER)),
        {uid.encode() for uid in _lines(directory / TAKEN)}, seen, about["changed"], about["reader_error"],
        about["broken"], [Strike(**strike) for strike in about["strikes"]],
    )  # fmt: skip
    return evidence, Saved(directory)


def save_stage(stage: Stage) -> None:
    """A stage that has come to rest, into its own directory."""
    save(stage.evidence(), OnBrokers(stage.bootstrap, stage.prefix), stage.directory)


class Saved(NamedTuple):
    """The topics in a directory."""

    directory: Path

    def read(self, name: str, isolation: Isolation = "read_committed", *, lean: bool = False) -> reader.Topic:
        lines = _lines(_file(self.directory, name, isolation))
        about = next(lines)
        return reader.Topic([_read(line, lean) for line in lines], dict(about["ends"]), dict(about["highs"]))


def _file(directory: Path, topic: str, isolation: Isolation) -> Path:
    return directory / f"{topic}.{isolation}.jsonl.gz"


def _write(path: Path, *parts: Iterable[Any]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for rows in parts:
            for row in rows:
                file.write(orjson.dumps(row) + b"\n")


def _lines(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rb") as file:
        for line in file:
            yield orjson.loads(line)


def _pairs(numbers: dict[int, int]) -> list[list[int]]:
    """JSON's objects have no numbers for names."""
    return [[number, at] for number, at in numbers.items()]


def _place(record: Read) -> list[Any]:
    return [record.partition, record.offset]


def _row(record: Read) -> list[Any]:
    headers = [[name, _shown(content)] for name, content in record.headers]
    return [record.partition, record.offset, _shown(record.key), _shown(record.value), headers]


def _read(row: list[Any], lean: bool) -> Read:
    """Where only places were saved, or are asked for, the rest is left out."""
    partition, offset, key, value, headers = row if len(row) > 2 else (*row, None, None, ())
    if lean:
        return Read(partition, offset, _bytes(key), None)
    return Read(partition, offset, _bytes(key), _bytes(value), tuple((name, _bytes(text)) for name, text in headers))


def _shown(part: bytes | None) -> str | dict[str, str] | None:
    """Text where it is text, else hexadecimal digits: people read these files, too."""
    if part is None:
        return None
    try:
        return part.decode()
    except UnicodeDecodeError:
        return {"hex": part.hex()}


def _bytes(shown: str | dict[str, str] | None) -> bytes | None:
    if shown is None:
        return None
    return shown.encode() if isinstance(shown, str) else bytes.fromhex(shown["hex"])


def _ledger(path: Path) -> Iterator[tuple[bytes, Sent]]:
    for line in path.read_bytes().splitlines():
        uid, *members = line.split(b"\t")
        intended, reason, identity = (None if member == b"-" else member.decode() for member in members)
        assert intended in {"good", "rejected"}
        yield uid, Sent(identity, "good" if intended == "good" else "rejected", reason)
