"""Writes the lock file: resolves Kafka's jars anew and records what came. Run by people, as `scripts/lock --jars`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from app.local.fetching import say_on_stderr
from app.local.jars import KAFKA_VERSION, LOCK_FILE

ROOTS: Final = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",  # console producer and consumer: tests show them as emitters
    "org.slf4j:slf4j-simple:1.7.36",  # Kafka's jars come without a logger; this one needs no configuration file
)
# kafka-tools names Kafka Connect for a single tool of its own; with it come Jetty and Jersey, 38 jars.
EXCLUDED: Final = ("org.apache.kafka", "connect-runtime")

HEADER: Final = (
    "# The jars of the local Kafka, with their SHA-256: the format is jgo's lock file.\n"
    "# Made by scripts/lock --jars; app/local/jars.py fetches and checks them.\n\n"
)


def main() -> None:
    from jgo.env._lockfile import LockFile  # the only door jgo has to its lock file
    from jgo.maven import MavenContext
    from jgo.parse import Coordinate

    with tempfile.TemporaryDirectory() as repository:
        context = MavenContext(repo_cache=Path(repository))
        excluded = [context.project(*EXCLUDED)]
        roots = [context.create_dependency(Coordinate.parse(root), excluded) for root in ROOTS]
        named, transitive = context.resolver.resolve(roots)
        needed = [*named, *(each for each in transitive if each.scope in {"compile", "runtime"})]
        lock = LockFile.from_resolved_dependencies(needed, environment_name=f"kafka-{KAFKA_VERSION}")
        lock.dependencies.sort(key=lambda each: (each.groupId, each.artifactId))
        lock.save(LOCK_FILE)
    LOCK_FILE.write_text(HEADER + LOCK_FILE.read_text(encoding="utf-8"), encoding="utf-8")
    say_on_stderr(f"Locked {len(lock.dependencies)} jars in {LOCK_FILE}")


if __name__ == "__main__":
    main()
