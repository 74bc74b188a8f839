"""What `tollgate up` settles: for its children, and as a file of a shell's words for other terminals."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Final

_STRONGER: Final = {"TOLLGATE_BOOTSTRAP": "TOLLGATE_KAFKA__BOOTSTRAP", "TOLLGATE_PREFIX": "TOLLGATE_KAFKA__PREFIX"}


class Environment:
    """Settings that differ from their defaults: given to our children, and written down for other terminals."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._address_file = file.with_name("address")
        self._set: dict[str, str] = {}

    def set(self, name: str, value: str) -> None:
        """Under the stronger name, too, where that is set outside: what an option says wins."""
        for known in (name, _STRONGER.get(name, name)):
            if known == name or known in os.environ:
                os.environ[known] = self._set[known] = value

    def set_default(self, section: str, name: str, value: Path) -> None:
        """What the user says wins, and is written down: other terminals may be in other directories."""
        from app import config

        if config.is_given(section, name):
            value = Path(getattr(getattr(config.load(), section), name)).absolute()
        self.set(f"TOLLGATE_{section}__{name}".upper(), str(value))

    def write(self) -> None:
        """Its presence means: everything is up."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self._set.items()]
        programs = _directory_of_program()
        if programs is not None:
            lines.append(f'export PATH={shlex.quote(str(programs))}:"$PATH"')
        self.file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)

    def remember_address(self, address: str) -> None:
        """Of a Kafka that is this stack's own: what another terminal still names when the stack is gone."""
        self._address_file.write_text(address, encoding="utf-8")

    def own_address(self) -> str | None:
        try:
            return self._address_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None


def _directory_of_program() -> Path | None:
    """Where the `tollgate` stands that runs: another terminal may not have it on its PATH."""
    for program in (Path(sys.argv[0]), Path(sys.executable).with_name("tollgate")):
        if program.name == "tollgate" and program.exists():
            return program.absolute().parent
    return None
