"""Who may do what on the cluster, as one table. ACLs, their documentation and their tests derive from it. Pure data.

Every program connects as the principal of one role and may do no more. READ and WRITE let a principal DESCRIBE as
well: Kafka's own authorizer implies it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from app.stream.topics import Topic


class Role(StrEnum):
    """What a principal is to a deployment."""

    EMITTER = "emitter"
    WORKER = "worker"
    GATE = "gate"
    API = "api"
    OPS = "ops"
    AUDITOR = "auditor"
    ISSUER = "issuer"
    ADMIN = "admin"


class Operation(StrEnum):
    """Kafka's operations that are given to anyone here."""

    READ = "Read"
    WRITE = "Write"
    DESCRIBE = "Describe"
    CREATE = "Create"
    ALTER_CONFIGS = "AlterConfigs"
    DESCRIBE_CONFIGS = "DescribeConfigs"


class Resource(StrEnum):
    """Kinds of resources, as Kafka's tools call them."""

    TOPIC = "topic"
    GROUP = "group"
    TRANSACTIONAL_ID = "transactional-id"


class Grant(NamedTuple):
    """One resource that one role may use. `prefixed`: every resource whose name begins so."""

    role: Role
    resource: Resource
    name: str
    prefixed: bool
    operations: tuple[Operation, ...]


class About(NamedTuple):
    """A role for people: who it is, and which commands run as it."""

    who: str
    commands: tuple[str, ...]


_R, _W = Operation.READ, Operation.WRITE
_DESCRIBE, _SETTINGS = Operation.DESCRIBE, Operation.DESCRIBE_CONFIGS

ROLES: Final[dict[Role, About]] = {
    Role.EMITTER: About("whoever triggers jobs", ("emit", "receipts")),
    Role.WORKER: About("whoever runs jobs", ("jobs tail",)),
    Role.GATE: About(
        "the stream processor; the only one who reads live tokens and who starts jobs", ("gate", "explain TRIGGER")
    ),
    Role.API: About("the HTTP door, for emitters that are no Kafka clients", ("serve",)),
    Role.OPS: About(
        "whoever says which jobs and issuers there are, and looks after refusals",
        ("jobs apply", "jobs list", "jobs remove", "allowlist suggest", "trust apply", "trust list", "trust register",
         "trust remove", "identities apply", "identities list", "identities rotate", "identities disable",
         "identities enable", "identities remove", "policy apply", "policy show", "policy remove", "token revoke",
         "revocations list", "revocations lift", "revocations clean", "dead-letters", "receipts", "audit",
         "audit issuance", "token inspect", "explain FILE", "topics check", "doctor"),
    ),
    Role.AUDITOR: About(
        "whoever looks and changes nothing",
        ("audit", "audit verify", "audit issuance", "receipts", "dead-letters", "jobs tail"),
    ),
    Role.ISSUER: About(
        "whoever makes tokens, and takes them back",
        ("token issue --as", "token issue --reference", "token issue --bound-to", "token inspect --no-uses",
         "token revoke"),
    ),
    Role.ADMIN: About("sets the deployment up and mends it; used rarely", ("topics create", "topics accept-gap")),
}  # fmt: skip

# A role that is not named may do nothing on that topic. Whoever checks the topics sees the settings of all: see below.
TOPIC_ACCESS: Final[dict[Topic, Mapping[Role, tuple[Operation, ...]]]] = {
    # Live tokens: only gates read them.
    Topic.TRIGGERS: {Role.EMITTER: (_W,), Role.API: (_W,), Role.GATE: (_R,)},
    # Whoever writes here starts jobs.
    Topic.HANDOFFS: {Role.GATE: (_R, _W)},
    # What gates write they also read: whether a transaction stands that nobody has told them the end of.
    Topic.JOBS: {Role.GATE: (_R, _W), Role.WORKER: (_R,), Role.OPS: (_R,), Role.AUDITOR: (_R,)},
    Topic.RECEIPTS: {Role.GATE: (_R, _W), Role.EMITTER: (_R,), Role.API: (_R,), Role.OPS: (_R,), Role.AUDITOR: (_R,)},
    Topic.DEAD_LETTERS: {Role.GATE: (_R, _W), Role.OPS: (_R,), Role.AUDITOR: (_R,)},
    Topic.AUDIT: {Role.GATE: (_R, _W), Role.OPS: (_R,), Role.AUDITOR: (_R,), Role.ADMIN: (_R, _W)},
    # Whoever writes here forges, or forgets, what was used.
    Topic.IDEMPOTENCY: {Role.GATE: (_R, _W), Role.API: (_R,), Role.OPS: (_R,)},
    Topic.CHECKPOINTS: {
        Role.GATE: (_R, _W),
        Role.API: (_R,),
        Role.OPS: (_R,),
        Role.AUDITOR: (_R,),
        Role.ADMIN: (_R, _W),
    },
    # The root of trust; the deployment record, written once, is in it too. An issuer binds tokens to what is there.
    Topic.REGISTRY: {Role.GATE: (_R,), Role.API: (_R,), Role.OPS: (_R, _W), Role.ISSUER: (_R,), Role.ADMIN: (_R, _W)},
    # Whoever may write here may also take a revocation back: Kafka does not tell a tombstone from a record.
    Topic.REVOCATIONS: {Role.GATE: (_R,), Role.API: (_R,), Role.OPS: (_R, _W), Role.ISSUER: (_W,)},
    # Who was given which token, and who was refused one.
    Topic.ISSUANCE: {Role.ISSUER: (_R, _W), Role.OPS: (_R,), Role.AUDITOR: (_R,)},
    # What handles stand for, signed; and hashes, of which nobody makes a handle.
    Topic.GRANTS: {Role.GATE: (_R,), Role.API: (_R,), Role.OPS: (_R,), Role.ISSUER: (_R, _W)},
}

# On every topic, beside the above: a gate refuses to start on wrong settings, so it must see them.
EVERY_TOPIC: Final[dict[Role, tuple[Operation, ...]]] = {
    Role.GATE: (_DESCRIBE, _SETTINGS),
    Role.API: (_DESCRIBE, _SETTINGS),
    Role.OPS: (_DESCRIBE, _SETTINGS),
    Role.ADMIN: (Operation.CREATE, _DESCRIBE, Operation.ALTER_CONFIGS, _SETTINGS),
}

GATE_GROUP: Final = "gate"  # the default of setting gate.group
OWN_GROUPS: Final = (Role.EMITTER, Role.WORKER, Role.OPS, Role.AUDITOR)
LANE_IDS: Final = "lane-"
REGISTRY_ID: Final = "registry"
REVOCATIONS_ID: Final = "revocations"


def grants(prefix: str, gate_group: str = GATE_GROUP) -> Iterator[Grant]:
    """Every grant of a deployment; what is not here is denied."""
    for topic in Topic:
        for role in Role:
            wanted = (*TOPIC_ACCESS[topic].get(role, ()), *EVERY_TOPIC.get(role, ()))
            if wanted:
                yield Grant(role, Resource.TOPIC, topic.named(prefix), False, wanted)
    # The group of the gates says who should take which lane: a stranger in it could starve lanes, though not more.
    yield Grant(Role.GATE, Resource.GROUP, prefix + gate_group, False, (_R,))
    yield Grant(Role.OPS, Resource.GROUP, prefix + gate_group, False, (_DESCRIBE,))
    for role in OWN_GROUPS:
        yield Grant(role, Resource.GROUP, prefix + role.value, True, (_R,))
    # A lane's transactional id is its lock: whoever may use it may fence the lane.
    for role in (Role.GATE, Role.ADMIN):
        yield Grant(role, Resource.TRANSACTIONAL_ID, prefix + LANE_IDS, True, (_W,))
    for name in (REGISTRY_ID, REVOCATIONS_ID):
        yield Grant(Role.OPS, Resource.TRANSACTIONAL_ID, prefix + name, False, (_W,))


def allows(granted: Iterable[Grant], role: Role, resource: Resource, name: str, operation: Operation) -> bool:
    """Whether a role may do this, as Kafka's authorizer would decide by these grants."""
    implied = {operation} | ({_R, _W} if operation is _DESCRIBE else set())
    if operation is _SETTINGS:
        implied.add(Operation.ALTER_CONFIGS)
    return any(
        (grant.role, grant.resource) == (role, resource)
        and (name.startswith(grant.name) if grant.prefixed else name == grant.name)
        and not implied.isdisjoint(grant.operations)
        for grant in granted
    )


# ── for a cluster's operators ──


def commands(
    principals: Mapping[Role, Sequence[str]],
    prefix: str,
    *,
    bootstrap: str,
    command_config: str | None = None,
    gate_group: str = GATE_GROUP,
) -> Iterator[str]:
    """The `kafka-acls.sh` commands that make these grants; principals of a role as Kafka writes them (`User:ci`)."""
    import shlex

    reach = ["--bootstrap-server", bootstrap, *(("--command-config", command_config) if command_config else ())]
    # What differs only in the name of the resource is one command: each starts a Java program.
    alike: dict[tuple[Role, Resource, bool, tuple[Operation, ...]], list[str]] = {}
    for grant in grants(prefix, gate_group):
        alike.setdefault((grant.role, grant.resource, grant.prefixed, grant.operations), []).append(grant.name)
    for (role, resource, prefixed, operations), names in sorted(
        alike.items(), key=lambda one: list(Role).index(one[0][0])
    ):
        if not principals.get(role):
            continue
        words = ["kafka-acls.sh", *reach, "--add", "--force"]
        words += [word for principal in principals[role] for word in ("--allow-principal", principal)]
        words += [word for operation in operations for word in ("--operation", operation.value)]
        words += ["--resource-pattern-type", "prefixed" if prefixed else "literal"]
        words += [word for name in names for word in (f"--{resource.value}", name)]
        yield shlex.join(words)
