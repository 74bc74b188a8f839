"""The published schemas: closed, true to the code that writes the records, and never changed without a new version."""

import copy
import hashlib
import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from app.authority.identities import Identity, identity_from_record, identity_key
from app.authority.platforms import Platform, platform_from_record, platform_key
from app.authority.records import Issued, IssueDenied
from app.authority.roles import Role, role_from_record, role_key
from app.gate import idempotency, records
from app.gate.definitions import JobRecord, TrustRule, job_from_record, job_key, trust_from_record, trust_key
from app.gate.jws import parse_unverified
from app.gate.mapping import MappingRule, mapping_from_record, mapping_key
from app.gate.policy import Revocation, Revocations, revocation_key
from app.gate.reasons import REASONS, Stage
from app.gate.reference import GRANT_TYP, HASH_CLAIM, Grants
from app.gate.trigger import DECIDING_HEADERS, MEMBERS, Record, Trigger, parse
from app.stream.inspection import DeploymentRecord
from app.stream.topics import Topic

DIRECTORY = Path(__file__).parents[1] / "schemas"
SCHEMAS = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text()) for path in DIRECTORY.glob("*.schema.json")
}
ASYNCAPI = yaml.safe_load((DIRECTORY / "asyncapi.yaml").read_text())

# SHA-256 of each schema's meaning. A schema that differs is another version: it gets a new file and a new line, and
# the old file stays as long as a topic may hold such records. (New reason codes are not a change: readers must take
# codes they do not know.)
DIGESTS = {
    "audit.v1": "20beaf5a8721e803",
    "checkpoint.v1": "653eb4081c793f2e",
    "dead-letter.v1": "f1a3f1f84bdb542d",
    "grant.v1": "6e6ec3d553f8d4f9",
    "handoff.v1": "f0db5ad05a7773d4",
    "idempotency.v1": "dea998c26ce4fc94",
    "issue-denied.v1": "b47c2053fefbff7d",
    "issued.v1": "dfb0bb66329bef67",
    "job.v1": "11d9c003c91627b3",
    "receipt.v1": "c214eea66178960e",
    "registry-deployment.v1": "38247db90672d495",
    "registry-identity.v2": "d8a96cd4524c0361",
    "registry-job.v1": "9eff2c96bb7d01ee",
    "registry-platform.v1": "af76b50fc8959fb4",
    "registry-role.v2": "d301f8023df340c1",
    "registry-rule.v1": "dc0a0e3c14fcee4c",
    "registry-trust.v1": "3c1b4a2500c7fb75",
    "revocation.v1": "488b6a704cc36c9f",
    "trigger-token.v1": "8b2e22669b7ff10e",
    "trigger.v1": "80ce3b3be0db0c88",
}
ANNOTATIONS = {"description", "examples", "title", "$comment"}
# Not closed: claims of other purposes are passed over; the reader of a dead letter meets the emitter's own headers.
OPEN = {"trigger-token.v1": ["", "/act"], "dead-letter.v1": ["/headers"]}


def meaning(schema, inside_properties=False):
    """A schema less what changes nothing for a validator, and less the list of reasons."""
    if isinstance(schema, dict):
        return {
            name: meaning(member, inside_properties=name == "properties" and not inside_properties)
            for name, member in schema.items()
            if inside_properties or (name not in ANNOTATIONS and not (name == "enum" and "token_missing" in member))
        }
    return [meaning(item) for item in schema] if isinstance(schema, list) else schema


def digest(schema):
    return hashlib.sha256(json.dumps(meaning(schema), sort_keys=True).encode()).hexdigest()[:16]


def objects(schema, pointer=""):
    """Every object a schema describes, with a pointer to it."""
    if "properties" in schema:
        yield pointer, schema
        for name, member in schema["properties"].items():
            yield from objects(member, f"{pointer}/{name}")
    if isinstance(schema.get("items"), dict):
        yield from objects(schema["items"], f"{pointer}[]")


def validate(name, instance):
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(instance)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_schema_is_valid_versioned_closed_and_its_examples_fit(name):
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:tollgate:schema:{name}"
    assert schema["title"]
    assert schema["description"]
    assert schema["examples"]
    for example in schema["examples"]:
        validate(name, example)
    for pointer, described in objects(schema):
        if pointer not in OPEN.get(name, []):
            assert described["additionalProperties"] is False, pointer


def test_a_changed_schema_has_a_new_version():
    found = {name: digest(schema) for name, schema in sorted(SCHEMAS.items())}
    assert found == DIGESTS, "a schema changed: give it a new version (NAME.v2.schema.json) and add its digest"


def test_annotations_and_new_reasons_are_no_change():
    old = SCHEMAS["receipt.v1"]
    new = copy.deepcopy(old) | {"title": "another"}
    new["properties"]["reason"]["enum"].append("brand_new")
    assert digest(old) == digest(new)
    new["required"].remove("detail")
    assert digest(old) != digest(new)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("receipt.v1", ["reason"]),
        ("audit.v1", ["presentations", "items", "reason"]),
        ("dead-letter.v1", ["headers", "tollgate-reason"]),
        ("dead-letter.v1", ["headers", "__streams.errors.exception"]),
    ],
)
def test_the_reasons_are_those_of_the_table(name, path):
    schema = SCHEMAS[name]
    for step in path:
        schema = schema[step] if step == "items" else schema["properties"][step]
    codes = [reason.code for reason in REASONS]
    assert [code for code in schema["enum"] if code is not None] == codes


def test_the_stages_are_those_of_the_table():
    stages = SCHEMAS["dead-letter.v1"]["properties"]["headers"]["properties"]["tollgate-stage"]["enum"]
    assert stages == [stage.value for stage in Stage]


WRITTEN = {
    "job.v1": records.JobRecord,
    "receipt.v1": records.Receipt,
    "audit.v1": records.AuditRecord,
    "handoff.v1": records.Handoff,
    "checkpoint.v1": records.Checkpoint,
    "registry-job.v1": JobRecord,
    "registry-trust.v1": TrustRule,
    "registry-identity.v2": Identity,
    "registry-role.v2": Role,
    "registry-platform.v1": Platform,
    "registry-rule.v1": MappingRule,
    "registry-deployment.v1": DeploymentRecord,
    "issued.v1": Issued,
    "issue-denied.v1": IssueDenied,
    "revocation.v1": Revocation,
}


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_the_members_are_those_the_code_writes(name):
    fields = [field.name for field in msgspec.structs.fields(WRITTEN[name])]
    optional = {"receipt.v1": {"insecure", "duplicate"}, "audit.v1": {"gaps"}}.get(name, set())
    assert set(SCHEMAS[name]["properties"]) - optional == set(fields)


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_an_example_reads_into_the_type_that_writes_it_and_fits_again(name):
    for example in SCHEMAS[name]["examples"]:
        read = msgspec.json.decode(json.dumps(example), type=WRITTEN[name])
        validate(name, json.loads(msgspec.json.encode(read)))


def test_the_members_of_a_plain_trigger_are_those_the_gate_takes():
    assert set(SCHEMAS["trigger.v1"]["properties"]) == MEMBERS
    example = SCHEMAS["trigger.v1"]["examples"][0]
    assert isinstance(parse(Record(0, 0, 0, True, None, json.dumps(example).encode(), ())), Trigger)


def test_examples_of_definitions_and_revocations_are_taken_by_the_gate():
    (example,) = SCHEMAS["registry-job.v1"]["examples"]
    assert not isinstance(job_from_record(job_key(example["name"]), json.dumps(example).encode()), str)
    (example,) = SCHEMAS["registry-trust.v1"]["examples"]
    assert not isinstance(trust_from_record(trust_key(example["issuer"]), json.dumps(example).encode()), str)
    for name, made, named in (
        ("registry-identity.v2", identity_from_record, identity_key),
        ("registry-role.v2", role_from_record, role_key),
        ("registry-rule.v1", mapping_from_record, mapping_key),
        ("registry-platform.v1", platform_from_record, platform_key),
    ):
        (example,) = SCHEMAS[name]["examples"]
        assert not isinstance(made(named(example["name"]), json.dumps(example).encode()), str)
    (example,) = SCHEMAS["revocation.v1"]["examples"]
    named = revocation_key(example["issuer"], example["selector"], example["value"])
    assert Revocations().apply(named, json.dumps(example).encode()) is None


def test_the_binary_layout_is_the_one_written():
    schema = SCHEMAS["idempotency.v1"]
    layout = schema["x-layout"]
    assert sum(member["bytes"] for member in layout) == idempotency.ENTRY_BYTES == 69
    (example,) = schema["examples"]
    value = bytes.fromhex(example["value"])
    entry = idempotency.unpack(value)
    assert idempotency.pack(*msgspec.structs.astuple(entry)) == value
    at = 0
    for member in layout:
        raw, at = value[at : at + member["bytes"]], at + member["bytes"]
        if member["name"] != "version":
            written = getattr(entry, member["name"])
            assert raw == (written if isinstance(written, bytes) else written.to_bytes(len(raw), "big"))
    assert len(bytes.fromhex(example["key"])) == idempotency.IDENTITY_BYTES


def test_the_example_of_a_grant_is_one_of_its_key_and_its_claims_are_a_tokens():
    (example,) = SCHEMAS["grant.v1"]["examples"]
    assert Grants().apply(example["key"].encode(), example["value"].encode(), 0) is None
    read = parse_unverified(example["value"])
    assert read.unverified_header["typ"] == GRANT_TYP
    assert read.unverified_claims[HASH_CLAIM] == example["key"]
    validate("trigger-token.v1", read.unverified_claims)


# ── the AsyncAPI document ──


def references(node):
    if isinstance(node, dict):
        for name, member in node.items():
            if name == "$ref":
                yield member
            else:
                yield from references(member)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def test_the_asyncapi_document_names_every_topic_once():
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    addresses = [channel["address"] for channel in ASYNCAPI["channels"].values()]
    assert sorted(addresses) == sorted(topic.named("tollgate.") for topic in Topic)


def test_every_reference_of_the_asyncapi_document_resolves_and_every_schema_is_used():
    used = set()
    for reference in references(ASYNCAPI):
        if reference.startswith("#/"):
            node = ASYNCAPI
            for step in reference.removeprefix("#/").split("/"):
                node = node[step]
        else:
            used.add(reference.removeprefix("./").removesuffix(".schema.json"))
    assert used == set(SCHEMAS) - {"trigger-token.v1"}  # a token is no record


def test_every_message_has_a_key_and_every_channel_an_operation():
    for message in ASYNCAPI["components"]["messages"].values():
        assert message["bindings"]["kafka"]["key"]["description"]
    operated = {operation["channel"]["$ref"].rpartition("/")[2] for operation in ASYNCAPI["operations"].values()}
    assert operated == set(ASYNCAPI["channels"])


def test_the_headers_that_decide_are_documented():
    documented = ASYNCAPI["components"]["schemas"]["TriggerHeaders"]["properties"]
    assert set(documented) == DECIDING_HEADERS | {"traceparent"}
