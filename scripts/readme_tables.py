"""The tables of README.md and SECURITY.md that derive from the code: copies of one list a fact, compared by a test."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "SECURITY.md")
WHAT = {
    "triggers": "what emitters send: live tokens, so only gates may read it",
    "handoffs": "verified triggers on their way home; whoever writes here starts jobs",
    "jobs": "accepted jobs, keyed by run id; whoever writes here starts jobs",
    "receipts": "one per trigger, keyed by its id: accepted, duplicate or rejected",
    "dead-letters": "rejected triggers less their tokens, with the reason in headers",
    "audit": "every presentation of a token, one record per transaction and lane, hash-chained",
    "idempotency": "the dedup table: a lane's changelog",
    "checkpoints": "where each lane stands",
    "registry": "job definitions, trust rules, identities, policy: the root of trust, ops only",
    "revocations": "who or what is no longer honoured: ops and issuers only",
    "issuance": "who was given which token, and who was refused one; never a token",
    "grants": "what handles (`ref:…`) stand for, signed, by the handle's hash: issuers only",
}


def topics() -> list[str]:
    from app.stream.topics import LAYOUT

    rows = ["| topic | cleanup | holds |", "|---|---|---|"]
    return rows + [
        f"| `{topic}` | {layout.enforced['cleanup.policy'].replace(',', ', ')} | {WHAT[topic.value]} |"
        for topic, layout in LAYOUT.items()
    ]


def reasons() -> list[str]:
    from app.gate.reasons import REASONS

    rows = ["| reason | stage | HTTP | means | what to do |", "|---|---|---|---|---|"]
    for reason in REASONS:
        passing = " (may pass)" if reason.transient else ""
        status = str(reason.http_status)
        cells = (f"`{reason.code}`", reason.stage.value, status, reason.meaning + passing, reason.remedy)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def commands() -> list[str]:
    import typer

    from app.cli import commands as table

    rows = ["| command | does |", "|---|---|"]
    for command in table.COMMANDS:
        loaded: Any = table._load(command)  # noqa: SLF001
        names = sorted(loaded.commands) if isinstance(loaded, typer.core.TyperGroup) else []
        words = f"`tollgate {command.name}`"
        if names:
            words += " " + " ".join(f"`{name}`" for name in names)
        rows.append(f"| {words} | {command.help} |")
    return rows


def settings() -> list[str]:
    from app import config

    rows = ["| setting | default | |", "|---|---|---|"]
    for section, name, default, about, _ in config.every():
        shown = "" if default is None else f"`{default}`"
        rows.append(f"| `{section}.{name}` | {shown} | {about} |")
    return rows


def roles() -> list[str]:
    from app.stream.access import ROLES

    rows = ["| role | who | runs |", "|---|---|---|"]
    return rows + [
        f"| `{role}` | {about.who} | {', '.join(f'`{command}`' for command in about.commands)} |"
        for role, about in ROLES.items()
    ]


def access() -> list[str]:
    from app.stream.access import TOPIC_ACCESS, Role

    rows = ["| topic | " + " | ".join(f"`{role}`" for role in Role) + " |", "|---" * (len(Role) + 1) + "|"]
    for topic, may in TOPIC_ACCESS.items():
        cells = (", ".join(operation.value.lower() for operation in may.get(role, ())) for role in Role)
        rows.append(f"| `{topic}` | " + " | ".join(cells) + " |")
    return rows


TABLES = {
    "topics": topics, "reasons": reasons, "commands": commands, "settings": settings, "roles": roles, "access": access,
}  # fmt: skip


def rendered(text: str) -> str:
    for name, table in TABLES.items():
        if f"<!-- generated: {name} -->" not in text:
            continue
        body = "\n".join(table())
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text, flags=re.DOTALL)
    return text


def main() -> int:
    behind = []
    for name in DOCUMENTS:
        before = (ROOT / name).read_text(encoding="utf-8")
        after = rendered(before)
        if before == after:
            continue
        behind.append(name)
        if "--check" not in sys.argv:
            (ROOT / name).write_text(after, encoding="utf-8")
    if "--check" in sys.argv and behind:
        print(f"the tables of {' and '.join(behind)} are behind the code: run scripts/readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
