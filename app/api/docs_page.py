"""The OpenAPI document as a page: plain HTML without a script, so that nothing is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

import orjson

from app.api.forms import ErrorCode
from app.api.problems import FAULTS, Fault
from app.authority.decide import DENIALS
from app.gate.reasons import REASONS, Reason

# Nothing may be loaded, run or framed; the one style stands in the page.
POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SHOWN: Final = {
    "bearer": "Authorization: Bearer TRIGGER_TOKEN", "user": "Authorization: Bearer USER_TOKEN",
    "host": "Authorization: Bearer HOST_TOKEN", "client": "Authorization: Basic NAME:SECRET",
    "assertion": "Authorization: Bearer CLIENT_ASSERTION",
}  # fmt: skip
_PROBLEMS: Final = (
    "Answers of 400 and above are <code>application/problem+json</code>, with a reason, but for those of OAuth:"
)
_OF_OAUTH: Final = (
    "What an endpoint of OAuth refuses as such, and a client that proves nothing, wherever it does, is told as OAuth "
    "has it: <code>application/json</code> with <code>error</code>, <code>error_description</code> and, where there is "
    "one, <code>reason</code>: of the table above, or why no token is issued. The status is 400; 401 or 429 for "
    "<code>invalid_client</code>."
)
_ERRORS: Final[dict[ErrorCode, str]] = {
    "invalid_request": "malformed, or two credentials at once; or the token handed over cannot be exchanged",
    "invalid_client": "no such client, or not its credential; 429: it has failed too often and has to wait",
    "unauthorized_client": "the token to be taken back is not the client's",
    "unsupported_grant_type": "neither client_credentials nor token exchange",
    "invalid_scope": "more than the client may have, or than the token handed over says",
    "invalid_target": "another audience or resource than this deployment's",
    "invalid_authorization_details": "not one well-formed object of type job_trigger",
}
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
code,pre{font:13px/1.45 ui-monospace,monospace;background:#f3f4f6;border-radius:4px;padding:.1em .3em}
pre{padding:.7em;overflow:auto}h2{border-top:1px solid #d5d9de;padding-top:1.2rem}h2 b{text-transform:uppercase}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #e3e6ea;padding:.3rem .6rem .3rem 0;text-align:left;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#e6e8eb;background:#15181c}code,pre{background:#23282e}td,th{border-color:#333a42}}
"""


def page(document: Mapping[str, Any]) -> bytes:
    """The whole page, UTF-8."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])} {escape(info['version'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1><p>{escape(info['summary'])} ",
        f"{escape(info['description'])} Machines read <a href=/openapi.json>/openapi.json</a>.</p>",
        *(
            part
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            for part in _operation(path, method, operation)
        ),
        "<h2>Schemas</h2>",
        *(f"<h3>{escape(name)}</h3><pre>{_json(schema)}</pre>" for name, schema in _shown(document).items()),
        f"<h2>Problems</h2><p>{_PROBLEMS}</p>",
        _table(("reason", "status", "means", "what to do"), _reasons()),
        f"<h2>Errors of OAuth</h2><p>{_OF_OAUTH}</p>",
        _table(("error", "means"), _ERRORS.items()),
        "<h2>Why no token is issued</h2>",
        _table(("reason or denial", "means", "what to do"), DENIALS),
        "</html>",
    ]
    return "".join(parts).encode()


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><b>{escape(method)}</b> <code>{escape(path)}</code></h2><p><b>{escape(operation['summary'])}.</b> "
    yield f"{escape(operation.get('description', ''))}</p>"
    schemes = [_SHOWN[name] for each in operation.get("security", ()) for name in each]
    if schemes:
        yield "<p>Needs " + " or ".join(f"<code>{each}</code>" for each in schemes) + ".</p>"
    rows = [(each["name"], each["in"], each.get("description", "")) for each in operation.get("parameters", ())]
    if rows:
        yield _table(("parameter", "in", ""), rows)
    if "requestBody" in operation:
        body = operation["requestBody"]
        ((media, content),) = body["content"].items()
        yield f"<p>Body, {escape(media)}: {_schema(content['schema'])} {escape(body.get('description', ''))}</p>"
        if "properties" in content["schema"]:  # a form's, which stands here alone
            yield _table(("member", "", ""), _members(content["schema"]))
    answers = []
    for status, response in operation["responses"].items():
        schemas = [_schema(content["schema"]) for content in response.get("content", {}).values()]
        answers.append((status, escape(response["description"]), " ".join(schemas)))
    yield "<table><tr><th>status<th>means<th>body</tr>"
    yield "".join(f"<tr><td>{status}<td>{means}<td>{schema}</tr>" for status, means, schema in sorted(answers))
    yield "</table>"


def _shown(document: Mapping[str, Any]) -> Mapping[str, Any]:
    schemas = dict(document["components"]["schemas"])
    schemas["Problem"] = schemas["Problem"] | {
        "properties": schemas["Problem"]["properties"] | {"reason": {"type": "string"}}
    }
    return schemas


def _reasons() -> list[tuple[str, ...]]:
    told: list[Reason | Fault] = [*REASONS, *FAULTS]
    return [(each.code, str(each.http_status), each.meaning, each.remedy) for each in told]


def _schema(schema: Mapping[str, Any]) -> str:
    name = schema.get("$ref", "").rpartition("/")[2] or schema.get("type", "")
    return f"<code>{escape(name)}</code>"


def _members(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, member in schema["properties"].items():
        values = [member["const"]] if "const" in member else member.get("enum", [])
        told = [member["description"]] if "description" in member else []
        told += [" or ".join(values)] if values else []
        told += [f"left out: {member['default']}"] if "default" in member else []
        yield name, "required" if name in schema["required"] else "", "; ".join(told)


def _json(value: Any) -> str:
    return escape(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(head)}" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "".join(lines) + "</table>"
