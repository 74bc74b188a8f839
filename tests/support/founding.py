"""A deployment for gates to serve: topics, jobs and one trusted issuer."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app import registry
from app.config import Kafka, Settings
from app.stream import administration
from tests.support.issuer import JOB, OtherIssuer


def found(
    bootstrap: str, prefix: str, lanes: int, issuer: OtherIssuer, directory: Path, jobs: tuple[str, ...] = (JOB,)
) -> None:
    """Topics, jobs and a trust rule for the issuer, as the commands make them."""
    directory.mkdir(parents=True, exist_ok=True)
    jobs_file, trust_file = issuer.write_files(directory, jobs)
    settings = Settings(kafka=Kafka(bootstrap=bootstrap, prefix=prefix))
    created = administration.create_topics(settings, lanes)
    assert created.checked.deployment is not None, created.checked.findings
    definitions = [*registry.read_definitions(jobs_file, "jobs"), *registry.read_definitions(trust_file, "trust")]
    asyncio.run(registry.apply(settings, definitions, dry_run=False))
