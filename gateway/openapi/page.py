"""The description of the API as one page of HTML, from the document: no scripts, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any

from gateway.openapi.codes import CODES, STATUSES

Schema = dict[str, Any]
_METHODS = ("get", "post", "delete")
_BODY_OF_EXAMPLE = "curl -N $BASE{path} -H 'content-type: application/json' -d '{body}'"

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d9dee3, #39424b); --soft: light-dark(#f5f7f8, #1d2329);
  --dim: light-dark(#5b6670, #9aa7b3); --mark: light-dark(#0b6e75, #55c3ca); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 6rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
h3 { margin: 2.5rem 0 .5rem; } h3 code { background: none; padding: 0; }
a { color: var(--mark); } nav ul { columns: 18rem; padding-left: 1.2rem; }
code, pre { font: .875em/1.5 ui-monospace, monospace; background: var(--soft); border-radius: 4px; }
code { padding: .1em .3em; } pre { padding: .8rem 1rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0; border-top: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; border: 0; } td:first-child { white-space: nowrap; }
summary { cursor: pointer; color: var(--mark); } .dim { color: var(--dim); } .verb { color: var(--mark); }
"""


def security_policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def page(document: Schema) -> str:
    info = document["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} <span class=dim>{escape(info['version'])}</span></h1>",
        f"<p>{escape(info['description'])}</p>",
        '<p>For programs: <a href="openapi.json">openapi.json</a>. In the examples, <code>$BASE</code> is this '
        "server's address, such as <code>http://127.0.0.1:8000</code>.</p>",
        *_security(document),
        *_contents(document),
        *_operations(document),
        *_schemas(document),
        *_errors(),
        "</body></html>",
    ]
    return "\n".join(parts)


def _security(document: Schema) -> Iterator[str]:
    if "securitySchemes" in document["components"]:
        yield (
            "<p>This server asks for a key: <code>Authorization: Bearer &lt;key&gt;</code> or "
            "<code>x-api-key: &lt;key&gt;</code>.</p>"
        )


def _all(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                yield method, path, methods[method]


def _contents(document: Schema) -> Iterator[str]:
    yield "<nav><ul>"
    for method, path, operation in _all(document):
        name = f"{method.upper()} {path}"
        yield f'<li><a href="#{escape(operation["operationId"])}">{escape(name)}</a></li>'
    yield '<li><a href="#types">Types</a></li><li><a href="#errors">Errors</a></li></ul></nav>'


def _operations(document: Schema) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2>"
        for method, path, operation in _all(document):
            if tag["name"] in operation["tags"]:
                yield from _operation(method, path, operation, document)


def _operation(method: str, path: str, operation: Schema, document: Schema) -> Iterator[str]:
    head = f"<span class=verb>{method.upper()}</span> <code>{escape(path)}</code>"
    yield f'<h3 id="{escape(operation["operationId"])}">{head}</h3><p>{escape(operation["summary"])}.</p>'
    yield from _parameters(operation["parameters"], document)
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        name = _name(content["schema"]["$ref"])
        yield from _fields(document["components"]["schemas"][name])
        for title, example in content["examples"].items():
            yield f"<details><summary>{escape(title)}</summary>{_curl(path, example['value'])}</details>"
    yield f"<p>Answers with {_answers(operation['responses']['200'])}. Errors: {_statuses(operation)}.</p>"


def _curl(path: str, body: Any) -> str:
    written = json.dumps(body, indent=2, ensure_ascii=False).replace("'", "'\\''")
    return f"<pre>{escape(_BODY_OF_EXAMPLE.format(path=path, body=written), quote=False)}</pre>"


def _answers(response: Schema) -> str:
    told = []
    for kind, content in response["content"].items():
        schema = content["schema"]
        if kind == "text/event-stream":
            data = schema["properties"]["data"]
            schema = data.get("anyOf", [data])[0]["contentSchema"]
        told.append(f"<code>{kind}</code>: {shape(schema)}")
    return ", or with ".join(told)


def _statuses(operation: Schema) -> str:
    return ", ".join(status for status in operation["responses"] if status != "200")


def _parameters(parameters: list[Schema], document: Schema) -> Iterator[str]:
    rows = []
    for each in parameters:
        if "$ref" in each:
            each = document["components"]["parameters"][_name(each["$ref"])]
        rows.append(_row(each["name"], each["in"], each["schema"].get("default"), each["description"]))
    yield _table(("Parameter", "In", "Default", "Meaning"), rows)


def _fields(schema: Schema) -> Iterator[str]:
    required = schema.get("required", [])
    rows = [
        _row(name, shape(field), "required" if name in required else field.get("default"), field.get("description", ""))
        for name, field in sorted(schema["properties"].items(), key=lambda item: item[0] not in required)
    ]
    yield _table(("Field", "Type", "Default", "Meaning"), rows)


def _row(name: str, kind: str, default: Any, meaning: str) -> str:
    shown = default if default == "required" else "" if default is None else _json(default)
    return f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{shown}</td><td>{escape(meaning)}</td></tr>"


def _table(heads: tuple[str, ...], rows: list[str]) -> str:
    head = "".join(f"<th>{each}</th>" for each in heads)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _json(value: Any) -> str:
    return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def shape(schema: Schema) -> str:
    """A schema in a few words of HTML."""
    if "$ref" in schema:
        name = escape(_name(schema["$ref"]))
        return f'<a href="#type-{name}">{name}</a>'
    for several, word in (("anyOf", " or "), ("allOf", " and ")):
        if several in schema:
            return (
                word.join(dict.fromkeys(shape(each) for each in schema[several] if each != {"type": "null"})) or "null"
            )
    if "enum" in schema:
        return ", ".join(_json(value) for value in schema["enum"] if value is not None)
    if "const" in schema:
        return _json(schema["const"])
    kind = schema.get("type", "anything")
    if kind == "array" and "items" in schema:
        parts = schema.get("prefixItems") or [schema["items"]]
        return f"array{_bounds(schema, 'Items')} of {', '.join(map(shape, parts))}"
    if kind == "object" and "properties" in schema:
        return f"object with {_members(schema)}"
    kind = kind if isinstance(kind, str) else " or ".join(each for each in kind if each != "null")
    return kind + _range(schema) + _bounds(schema, "Length")


def _members(schema: Schema) -> str:
    return ", ".join(f"<code>{escape(name)}</code>: {shape(each)}" for name, each in schema["properties"].items())


def _range(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is None and most is None:
        return ""
    if most is None:
        return f", at least {least}"
    return f", {least} to {most}"


def _bounds(schema: Schema, what: str) -> str:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    if most is None:
        told = f"at least {least}" if least else ""
    else:
        told = f"{least} to {most}" if least else f"at most {most}"
    if not told:
        return ""
    return f" ({told})" if what == "Items" else f", {told} characters"


def _schemas(document: Schema) -> Iterator[str]:
    yield '<h2 id="types">Types</h2>'
    for name, schema in document["components"]["schemas"].items():
        yield f'<h3 id="type-{escape(name)}"><code>{escape(name)}</code></h3>'
        if "properties" in schema:
            yield from _fields(schema)
        else:
            yield f"<p>{shape(schema)}</p>"


def _errors() -> Iterator[str]:
    yield '<h2 id="errors">Errors</h2>'
    statuses = [f"<tr><td>{status}</td><td>{escape(meaning)}</td></tr>" for status, meaning in STATUSES.items()]
    yield _table(("Status", "Meaning"), statuses)
    codes = [f"<tr><td><code>{code}</code></td><td>{escape(meaning)}</td></tr>" for code, meaning in CODES.items()]
    yield _table(("Code", "Meaning"), codes)
