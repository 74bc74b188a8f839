"""`tollgate`: the table of commands. Each command's module is imported only when that command is called.

A module of commands has `app = common.new_app()`, or a plain function.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from itertools import groupby
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

from app.cli import common, plain


class Command(NamedTuple):
    """One command: its name, the module that holds it, what `tollgate --help` says of it, and where there.

    `held` is the name in the module of a Typer app (one command or a group) or of a plain function.
    """

    name: str
    module: str
    help: str
    heading: str
    held: str = "app"


_START, _OPS, _TOKENS, _SEE = "Start", "Set up", "Keys and tokens", "Send and see"

COMMANDS: Final = (
    Command("up", "app.cli.up", "everything on one machine: Kafka, topics, keys, gate", _START),
    Command("broker", "app.cli.broker", "a real Kafka alone, for development", _START),
    Command("gate", "app.cli.gate", "run the stream processor", _START),
    Command("serve", "app.cli.serve", "the HTTP door: triggers in, receipts out", _START),
    Command("topics", "app.cli.topics", "create or check the topics and their settings", _OPS),
    Command("jobs", "app.cli.jobs", "job definitions (apply, list) and accepted jobs (tail)", _OPS),
    Command("allowlist", "app.cli.allowlist", "who may start a job, as its owner says: suggest", _OPS),
    Command("trust", "app.cli.trust", "which issuers may do what", _OPS),
    Command("identities", "app.cli.identities", "who may ask for tokens, and their credentials", _OPS),
    Command("policy", "app.cli.policy", "what roles may issue, and rules over tokens that are out", _OPS),
    Command("config", "app.cli.config", "the settings in effect, and where they are from", _OPS),
    Command("doctor", "app.cli.doctor", "broker, topics, keys, clock: what is wrong and how to mend it", _OPS),
    Command("keys", "app.cli.keys", "signing keys: generate, rotate, retire, list, jwks", _TOKENS),
    Command("token", "app.cli.token", "issue, inspect, verify, list and revoke tokens", _TOKENS),
    Command("login", "app.cli.login", "get a token of a person's own, for a while", _TOKENS, held="login"),
    Command("logout", "app.cli.login", "end it", _TOKENS, held="logout"),
    Command("whoami", "app.cli.login", "who is logged in, where, until when", _TOKENS, held="whoami"),
    Command("revocations", "app.cli.revocations", "who or what is revoked: list, lift, clean", _TOKENS),
    Command("emit", "app.cli.emit", "publish a trigger, and wait for its receipt", _SEE),
    Command("receipts", "app.cli.read", "what became of triggers", _SEE, held="receipts_app"),
    Command("dead-letters", "app.cli.read", "refused triggers: list, show", _SEE, held="dead_letters_app"),
    Command("audit", "app.cli.audit", "who started what; verify that nothing was altered", _SEE),
    Command("explain", "app.cli.explain", "every check of one trigger, and the one that decided", _SEE),
)
_BY_NAME: Final = {command.name: command for command in COMMANDS}

# Subcommands that live in another module than their group: (group, name) → module, name in it.
ELSEWHERE: Final = {
    ("jobs", "tail"): ("app.cli.read", "jobs_tail"),
    ("audit", "verify"): ("app.cli.audit_chain", "verify"),
    ("audit", "issuance"): ("app.cli.issuance", "issuance"),
    ("token", "issue"): ("app.cli.issuing", "issue"),
    ("token", "revoke"): ("app.cli.revoke", "revoke"),
    ("token", "list"): ("app.cli.login", "list_tokens"),
}


class _Commands(TyperGroup):
    """Holds a stub per command for the help; the real one takes its place when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _BY_NAME:
            self.commands[args[0]] = _load(_BY_NAME[args[0]])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - called by Typer
        width = max(map(len, _BY_NAME))
        for heading, commands in groupby(COMMANDS, key=lambda command: command.heading):
            with formatter.section(heading):
                formatter.write_dl([(command.name.ljust(width), command.help) for command in commands])


def _load(command: Command) -> Any:
    loaded = _command_of(command.name, command.module, command.held)
    for (group, name), (module, held) in ELSEWHERE.items():
        if group == command.name:
            loaded.add_command(_command_of(name, module, held), name)
    return loaded


def _command_of(name: str, module: str, held: str) -> Any:
    app = getattr(importlib.import_module(module), held)
    if not isinstance(app, typer.Typer):
        function, app = app, common.new_app()
        app.command(name)(function)
    loaded: Any = typer.main.get_command(app)
    loaded.name = name
    return loaded


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("tollgate"))
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Token-gated job triggers on Kafka: one trigger, one job, exactly once.

    Start with `tollgate up`; it prints what to try next.

    Settings: options, TOLLGATE_… in the environment, tollgate.toml.

    Exit codes: 0 done, 1 failed, 2 usage, 3 some records failed,
    4 not allowed, 5 nothing matched, 6 log in first, 124 timed out.
    """


def _stub() -> None:
    """Never called: its place is taken before."""


def build() -> Any:
    """The whole command line, its commands still unloaded."""
    app = common.new_app(name="tollgate", cls=_Commands)
    app.callback()(_root)
    for command in COMMANDS:
        app.command(command.name)(_stub)
    return typer.main.get_command(app)


def run(arguments: list[str]) -> int:
    """Run a command line; the exit code. Expected errors become one sentence, never a traceback."""
    try:
        return _run(arguments)
    except BrokenPipeError:  # `| head` has seen enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return common.DONE
    except Exception as error:
        if "TOLLGATE_TRACEBACK" in os.environ:
            raise
        what = f"{type(error).__name__}: {error}"
        sentence, code = common.sentence_of(error) or (
            f"tollgate failed unexpectedly ({what}); TOLLGATE_TRACEBACK=1 shows where", common.FAILED
        )  # fmt: skip
        common.say(sentence)
        return code


def _run(arguments: list[str]) -> int:
    """Not Typer's own way of running: that one would repeat a token, and ends a closed pipe as a failure."""
    fault = plain.fault_of(arguments)
    if fault is not None:
        common.say(fault)
        return common.USAGE
    program = build()
    try:
        with program.make_context("tollgate", arguments) as context:
            program.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:
        if not hasattr(error, "show"):  # only Typer's errors of usage show themselves
            raise
        shown = io.StringIO()
        error.show(shown)
        common.say(shown.getvalue().rstrip())
        return common.USAGE
    finally:
        print(end="", flush=True)  # here, where a closed pipe is expected
    return common.DONE
