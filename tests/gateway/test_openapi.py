"""The description of the API: whole, well-formed, and true of what the server does."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route

from gateway.http.app import routes
from gateway.http.keys import Keys
from gateway.openapi.codes import CODES, STATUSES
from gateway.openapi.document import document
from gateway.openapi.operations import OPERATIONS
from gateway.requests.prepare import Workers
from tests.fixtures.fakes import MODEL, client_of, events, toy_model, toy_services

DOCUMENT = document(toy_services())
SCHEMAS = DOCUMENT["components"]["schemas"]
ALL = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
GATEWAY = Path(__file__).parents[2] / "gateway"
REQUESTS = [operation for operation in OPERATIONS if operation.examples]
EXAMPLES = [(operation, name) for operation in REQUESTS for name in operation.examples]


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def operation_of(path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


def test_every_route_is_described_and_nothing_else() -> None:
    services = toy_services()
    served = {
        (method.lower(), re.sub(r":path\b", "", route.path))
        for route in routes(services, Workers(1, 1))
        if isinstance(route, Route)
        for method in (route.methods or ())
        if method != "HEAD"
    }
    described = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == served


def test_the_document_is_openapi_3_1_with_valid_schemas() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_reference_leads_somewhere_and_every_schema_is_referred_to() -> None:
    known = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "headers", "parameters")
        for name in DOCUMENT["components"][kind]
    }
    assert set(references(DOCUMENT)) == known


def test_ids_of_operations_are_unique() -> None:
    ids = [operation.id for operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


def requested(name: str, seen: set[str]) -> set[str]:
    """All schemas that a request's consists of."""
    if name not in seen:
        seen.add(name)
        for reference in references(SCHEMAS[name]):
            requested(reference.rpartition("/")[2], seen)
    return seen


@pytest.mark.parametrize("operation", REQUESTS, ids=lambda operation: operation.id)
def test_every_field_of_a_request_has_a_meaning(operation: Any) -> None:
    body = operation_of(operation.path, operation.method)["requestBody"]["content"]["application/json"]["schema"]
    for name in requested(body["$ref"].rpartition("/")[2], set()):
        for field, schema in SCHEMAS[name].get("properties", {}).items():
            assert schema.get("description") or len(schema.get("enum", [])) == 1, f"{name}.{field}"


@pytest.mark.parametrize(("operation", "name"), EXAMPLES, ids=lambda value: getattr(value, "id", value))
async def test_every_example_is_answered_as_described(client: httpx.AsyncClient, operation: Any, name: str) -> None:
    described = operation_of(operation.path, operation.method)
    content = described["requestBody"]["content"]["application/json"]
    example = content["examples"][name]["value"]
    validator(content["schema"]).validate(example)
    answer = await client.request(operation.method, operation.path, json=example)
    assert answer.status_code == 200, answer.text
    media = described["responses"]["200"]["content"][answer.headers["content-type"].partition(";")[0]]
    if "text/event-stream" not in answer.headers["content-type"]:
        return validator(media["schema"]).validate(answer.json())
    data_of_events = media["schema"]["properties"]["data"]
    written = data_of_events.get("anyOf", [data_of_events])[0]
    for data in events(answer.content):
        if data != "[DONE]":
            validator(written["contentSchema"]).validate(data)
    return None


async def test_a_system_prompt_of_no_blocks_is_right_and_answered(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}], "system": []}
    described = operation_of("/v1/messages", "post")["requestBody"]["content"]["application/json"]["schema"]
    validator(described).validate(body)
    assert (await client.post("/v1/messages", json=body)).status_code == 200


def raised_codes() -> Iterator[str]:
    """Of errors whose code is written where they are made."""
    for path in GATEWAY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("ApiError", "invalid", "unavailable"):
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                if node.func.id != "ApiError":  # type: ignore[attr-defined]
                    given += node.args[2:3]
                yield from (each.value for each in given if isinstance(each, ast.Constant))


def test_every_code_of_an_error_is_explained() -> None:
    assert {code for code in raised_codes() if code is not None} <= set(CODES)


def test_every_status_is_explained() -> None:
    assert {int(status) for each in ALL for status in each["responses"]} - {200} <= set(STATUSES)


def test_without_keys_nobody_is_asked_for_one() -> None:
    assert "securitySchemes" not in DOCUMENT["components"]
    assert not any("401" in each["responses"] for each in ALL)


def test_with_keys_all_but_health_ask_for_one() -> None:
    services = toy_services()
    with_keys = document(replace(services, keys=Keys("secret", None, services.clock)))
    assert set(with_keys["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    asking = {path for path, methods in with_keys["paths"].items() if any("security" in o for o in methods.values())}
    pages = {"/", "/chatpage/{file}", "/dashboard", "/dashboard/{file}"}
    assert set(with_keys["paths"]) - asking == {"/health", "/ready", *pages}


async def test_the_document_names_the_model_and_the_servers_bounds() -> None:
    async with client_of(toy_services(max_choices=3, max_temperature=0.5)) as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert schemas["ModelName"]["enum"] == [MODEL]
    fields = schemas["ChatRequest"]["properties"]
    assert fields["n"]["anyOf"][0]["maximum"] == 3 and fields["temperature"]["anyOf"][0]["maximum"] == 0.5


def test_the_document_tells_the_models_own_defaults() -> None:
    services = replace(toy_services(), model=toy_model(sampling_defaults={"top_p": 0.9}))
    fields = document(services)["components"]["schemas"]["ChatRequest"]["properties"]
    assert (fields["top_p"]["default"], fields["temperature"]["default"]) == (0.9, 1.0)


class Outline(HTMLParser):
    """What a page links to, which anchors it has, and what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a":
            self.links.append(given.get("href") or "")
        if given.get("id"):
            self.anchors.append(given["id"] or "")
        if tag in ("script", "link", "img", "iframe") or "src" in given or "style" in given:
            self.loaded.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
async def docs(client: httpx.AsyncClient) -> httpx.Response:
    return await client.get("/docs")


async def test_the_page_needs_nothing_else_and_allows_nothing_else(docs: httpx.Response) -> None:
    outline = Outline()
    outline.feed(docs.text)
    assert (docs.status_code, docs.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert docs.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert outline.loaded == [] and outline.open == []


async def test_the_pages_links_lead_somewhere(docs: httpx.Response) -> None:
    outline = Outline()
    outline.feed(docs.text)
    inside = {link[1:] for link in outline.links if link.startswith("#")}
    assert inside <= set(outline.anchors) and len(outline.anchors) == len(set(outline.anchors))
    assert {link for link in outline.links if not link.startswith("#")} == {"openapi.json"}


async def test_the_page_tells_every_path_field_and_code(docs: httpx.Response) -> None:
    told = set(re.findall(r"<code>([^<]+)</code>", docs.text))
    fields = {field for schema in SCHEMAS.values() for field in schema.get("properties", {})}
    assert set(DOCUMENT["paths"]) | fields | set(CODES) <= told
