"""Prints the ACLs of app/stream/access.py as commands of Kafka's own tool. Connects to nothing."""

from __future__ import annotations

import argparse
import textwrap

from app.config import ConfigError, load
from app.stream.access import ROLES, Role, commands

EXAMPLE = """\
An example, for a cluster with an authorizer (StandardAuthorizer on KRaft) and SASL or mutual TLS:

  scripts/acls --bootstrap kafka:9093 --command-config superuser.properties \\
      --gate User:tollgate-gate --ops User:alice --ops User:bob --admin User:deploy \\
      --emitter User:ci --emitter User:shop --worker User:reports > acls.sh
  less acls.sh && sh acls.sh        # as someone who may change ACLs: a superuser

A role without a principal gets nothing. Principals are written as the broker names them: User:NAME after SASL,
User:CN=NAME,… after mutual TLS. Give every program a principal of its own; several may have one role.

Kafka must deny what is not granted: allow.everyone.if.no.acl.found=false (its default). With that, whoever is not
named here may do nothing. Check by hand: kafka-acls.sh --list; and `tollgate doctor` run as ops.

What it comes to:

"""


def roles_told() -> str:
    lines = []
    for role, about in ROLES.items():
        ran = ", ".join(about.commands)
        told = f"{role.value:8}  {about.who}. Runs: {ran}"
        lines.append(textwrap.fill(told, 100, initial_indent="  ", subsequent_indent=" " * 12))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/acls",
        description="Print the kafka-acls.sh commands that give each role what it must have, and nothing more.",
        epilog=EXAMPLE + roles_told(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prefix", help="of topics, groups and transactional ids; default that of tollgate.toml")
    parser.add_argument("--bootstrap", help="host:port of the brokers; default that of tollgate.toml")
    parser.add_argument("--command-config", metavar="FILE", help="properties with which kafka-acls.sh logs in")
    parser.add_argument("--gate-group", metavar="NAME", help="setting gate.group; default that of tollgate.toml")
    for role, about in ROLES.items():
        parser.add_argument(
            f"--{role.value}", action="append", default=[], metavar="PRINCIPAL", help=f"{about.who}; repeatable"
        )
    given = parser.parse_args()
    principals = {role: getattr(given, role.value) for role in Role}
    if not any(principals.values()):
        parser.error("name at least one principal, such as --gate User:tollgate-gate; --help shows an example")
    odd = [one for names in principals.values() for one in names if not one.partition(":")[2]]
    if odd:
        parser.error(f"{odd[0]} is no principal: it is TYPE:NAME, such as User:{odd[0]}")
    try:
        settings = load(kafka__prefix=given.prefix, kafka__bootstrap=given.bootstrap, gate__group=given.gate_group)
    except ConfigError as error:
        parser.error(str(error))
    for command in commands(
        principals,
        settings.kafka.prefix,
        bootstrap=settings.kafka.bootstrap,
        command_config=given.command_config,
        gate_group=settings.gate.group,
    ):
        print(command)


if __name__ == "__main__":
    main()
