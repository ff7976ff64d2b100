"""The description of the API as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from gateway.http.error_shape import CHAT_WEB, is_anthropic
from gateway.http.guard import OPEN_PATHS
from gateway.openapi.codes import STATUSES
from gateway.openapi.fields.forms import Schema, either, ref
from gateway.openapi.operations import MODEL, OPERATIONS, Operation
from gateway.openapi.schemas import component_of, components
from gateway.services import Services

_ABOUT = (
    "Shapes are OpenAI's, Anthropic's below /v1/messages, nanochat's at /chat/completions; fields beyond theirs are "
    "extensions. Fields without effect here are left out and named in x-headrace-ignored, or refused where the server "
    "is strict."
)
_HEADERS: dict[str, str] = {
    "x-request-id": "Finds the request in the log; the client's own where it sent one.",
    "x-headrace-seed": "With it as seed, the same request has the same answer.",
    "x-headrace-ignored": "Fields that had no effect.",
    "x-headrace-parameters": "The parameters that were in force, and where from; where x-headrace-explain asked.",
    "x-headrace-steps": "As many steps are in the trace.",
    "retry-after": "Seconds to wait.",
}
_ASKED_HEADERS: dict[str, str] = {
    "x-request-id": "The client's own name for the request: 1 to 128 letters, digits, dots, underscores or dashes.",
    "x-headrace-explain": "1: x-headrace-parameters is wanted.",
}
_SECURITY: dict[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def document(services: Services) -> dict[str, Any]:
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, services)
    return {
        "openapi": "3.1.0",
        "info": {"title": "headrace", "version": services.version, "description": _ABOUT},
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": components(services),
            "headers": {name: _text_of(description) for name, description in _HEADERS.items()},
            "parameters": {name: _asked_header(name) for name in _ASKED_HEADERS},
            **({} if services.keys is None else {"securitySchemes": _SECURITY}),
        },
    }


def _text_of(description: str) -> Schema:
    return {"description": description, "schema": {"type": "string"}}


def _asked_header(name: str) -> Schema:
    return {"name": name, "in": "header", **_text_of(_ASKED_HEADERS[name])}


def _operation(operation: Operation, services: Services) -> Schema:
    parameters = [*operation.parameters, {"$ref": "#/components/parameters/x-request-id"}]
    if operation.generates:
        parameters.append({"$ref": "#/components/parameters/x-headrace-explain"})
    found: Schema = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": parameters,
    }
    if operation.body is not None:
        found["requestBody"] = _body(operation, operation.body, services)
    found["responses"] = {"200": _answer(operation)}
    for status in sorted({*operation.errors, *_of_guard(operation, services)}):
        found["responses"][str(status)] = _error(status, operation.path)
    if services.keys is not None and 401 in _of_guard(operation, services):
        found["security"] = [{name: []} for name in _SECURITY]
    return found


def _of_guard(operation: Operation, services: Services) -> set[int]:
    """Statuses with which a request may be turned away at the door."""
    guarded = services.keys is not None and operation.path not in OPEN_PATHS
    if operation.path == "/metrics" and not services.settings.metrics_auth:
        guarded = False
    limited = operation.method == "post" and (services.keys is not None or bool(services.settings.rate_limits))
    return ({401} if guarded else set()) | ({429} if limited else set())


def _body(operation: Operation, body: type[Any], services: Services) -> Schema:
    examples = {name: {"value": _with_model(value, services)} for name, value in operation.examples.items()}
    content = {"schema": ref(component_of(body)), "examples": examples}
    return {"required": True, "content": {"application/json": content}}


def _with_model(example: Any, services: Services) -> Schema:
    return {name: services.model.name if value == MODEL else value for name, value in example.items()}


def _answer(operation: Operation) -> Schema:
    names = ["x-request-id", *operation.headers]
    if operation.body is not None:
        names.append("x-headrace-ignored")
    if operation.generates:
        names += ["x-headrace-seed", "x-headrace-parameters"]
    return {"description": "The answer.", "headers": _headers(names), "content": _answer_content(operation)}


def _answer_content(operation: Operation) -> Schema:
    answer = operation.answer
    content: Schema = {}
    if not isinstance(answer, str):
        schema = {"type": "object"} if answer is dict else ref(component_of(answer))
        content["application/json"] = {"schema": schema}
    elif answer != "text/event-stream":
        content[answer] = {"schema": {"type": "string"}}
    if operation.streams:
        content[operation.streams] = {"schema": {"type": "string"}}
    if operation.events:
        kinds = [ref(component_of(kind)) for kind in operation.events]
        data = kinds[0] if len(kinds) == 1 else either(*kinds)
        content["text/event-stream"] = {"schema": _event(data, operation.tells_done)}
    return content


def _event(data: Schema, tells_done: bool) -> Schema:
    """One of a stream."""
    written: Schema = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    if tells_done:
        written = either(written, {"const": "[DONE]"})
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": written}, "required": ["data"]}


def _headers(names: list[str]) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _error(status: int, path: str) -> Schema:
    schema = ref("AnthropicError" if is_anthropic(path) else "NanochatError" if path == CHAT_WEB else "Error")
    names = ["x-request-id", "retry-after"] if status in (429, 503) else ["x-request-id"]
    content = {"application/json": {"schema": schema}}
    return {"description": STATUSES[status], "headers": _headers(names), "content": content}
