"""The README's tables are copies of what the code says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_tables_of_the_readme_are_those_of_the_code():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "readme_tables.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_link_of_the_readme_leads_somewhere():
    import re

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_definitions_shown_in_the_readme_are_good_ones():
    import re
    import tomllib

    from app.registry import define

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"^ *```toml\n(.*?)```", text, re.DOTALL | re.MULTILINE))
    tables = tomllib.loads(shown)
    assert tables.keys() == {"jobs", "trust", "identities", "roles", "rules"}
    ours = {"issuer": "https://issuer.example", "org_id": "acme"}  # what the settings say
    for kind, definitions in tables.items():
        for name, table in definitions.items():
            assert define(kind, name, (ours if kind == "identities" else {}) | table).warnings == ()
