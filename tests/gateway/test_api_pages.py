"""Everything but generation: models, health, readiness, metrics, tokens, and what is not there."""

import re
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from gateway.services import Services
from tests.fixtures.fakes import BOS, MODEL, FakeEngine, client_of, toy_services


async def test_models_lists_the_served_one(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/v1/models")).json()
    assert answer["object"] == "list"
    assert [card["id"] for card in answer["data"]] == [MODEL]


async def test_model_by_name(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/v1/models/{MODEL}")).json()["max_model_len"] == 4096


async def test_unknown_model_with_a_slash_in_its_name(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models/some/other")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_health_and_ready(client: httpx.AsyncClient) -> None:
    assert [(await client.get(path)).status_code for path in ("/health", "/ready")] == [200, 200]


async def test_ready_says_that_the_engine_is_not(services: Services) -> None:
    async with client_of(toy_services(FakeEngine(ready=None))) as client:
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert (await client.get("/health")).status_code == 200


async def test_ready_says_that_the_server_drains(services: Services, client: httpx.AsyncClient) -> None:
    services.drain.draining = True
    answer = await client.get("/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert answer.headers["retry-after"]


async def test_metrics_are_prometheus_text(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "headrace_engine_up" in answer.text


async def test_version(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json()["version"]


async def test_tokenize_shows_what_would_be_run(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/tokenize", json={"prompt": "<|bos|>ab"})).json()
    assert answer == {"count": 3, "max_model_len": 4096, "tokens": [BOS, 97, 98]}


async def test_tokenize_spells_tokens_and_tells_what_it_ignores(client: httpx.AsyncClient) -> None:
    answer = await client.post("/tokenize", json={"prompt": "<|bos|>a", "return_token_strs": True, "other": 1})
    assert answer.json()["token_strs"] == ["<|bos|>", "a"] and answer.headers["x-headrace-ignored"] == "other"
    answer = await client.post("/detokenize", json={"tokens": [97], "other": 1})
    assert answer.headers["x-headrace-ignored"] == "other"


async def test_tokenize_applies_the_chat_template(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "<|bos|>"}]}
    tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
    assert BOS not in tokens and bytes(tokens[1:-2]) == b"<|bos|>"


async def test_tokenize_wants_one_of_prompt_and_messages(client: httpx.AsyncClient) -> None:
    assert (await client.post("/tokenize", json={})).status_code == 400


async def test_detokenize(client: httpx.AsyncClient) -> None:
    assert (await client.post("/detokenize", json={"tokens": [104, 105, BOS]})).json() == {"prompt": "hi<|bos|>"}


async def test_detokenize_checks_its_ids(client: httpx.AsyncClient) -> None:
    answer = await client.post("/detokenize", json={"tokens": [104, 999]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tokens[1]")


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/v1/chat", "/v1/models/", "/health/", "/v1", "/v1/", "/files"),
        *("/v1/chat/completions/", "/v1/chat/completions/chat/completions"),
    ],
)
async def test_unknown_path(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


def sdk_paths() -> list[str]:
    """Those that the vendors' clients ask for, as their sources spell them, with ids in their places."""
    found: set[str] = set()
    for package in (openai, anthropic):
        for source in (Path(package.__file__).parent / "resources").rglob("*.py"):
            found |= set(re.findall(r'[(\s]f?"(/[a-z][^"?\s]*)', source.read_text()))
    ids = {"{completion_id}": "chatcmpl-1", "{model}": MODEL, "{model_id}": MODEL}
    found = {re.sub(r"\{\w+\}", lambda match: ids.get(match[0], "x_1"), path) for path in found}
    return sorted({path if path.startswith("/v1/") else f"/v1{path}" for path in found})


async def test_whatever_vendors_clients_ask_for_is_served_or_refused_by_name(client: httpx.AsyncClient) -> None:
    paths = sdk_paths()
    assert len(paths) > 200
    served = set()
    for path in paths:
        error = (await client.request("PROPFIND", path)).json()["error"]
        code, message = error.get("code"), error["message"]
        if code == "method_not_allowed" or "does not answer" in message:
            served.add(path)
        else:
            assert "is not supported by this server" in message, (path, message)
    assert {"/v1/chat/completions", "/v1/messages/count_tokens", "/v1/responses/x_1/cancel"} <= served
    assert len(served) < 20


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/files", "/v1/files"),
        ("/v1/audio/speech", "/v1/audio"),
        ("/rerank", "/rerank"),
        ("/v1/chat/completions/chatcmpl-1/messages", "/v1/chat/completions/{id}"),
    ],
)
async def test_a_known_feature_that_is_not_built(client: httpx.AsyncClient, path: str, name: str) -> None:
    answer = await client.post(path, json={})
    assert answer.status_code == 501 and answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"] == {
        "message": f"{name} is not supported by this server.",
        "type": "not_implemented_error",
        "param": None,
        "code": "not_implemented",
    }


async def test_it_has_the_shape_of_its_api(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/messages/batches")
    assert (answer.status_code, answer.json()["error"]["type"]) == (501, "api_error")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("DELETE", "/v1/completions", {"POST"}),
        ("OPTIONS", "/v1/completions", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("OPTIONS", "/v1/responses/resp_1", {"DELETE", "GET", "HEAD"}),
        ("OPTIONS", "/v1/responses/input_tokens", {"POST"}),
    ],
)
async def test_wrong_method_names_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == ", ".join(sorted(allowed))


async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    answer = await client.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/chat/completions"])
async def test_every_response_carries_the_clients_request_id(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"x-request-id": "trace-1.a_B"})
    assert answer.headers["x-request-id"] == "trace-1.a_B"


@pytest.mark.parametrize("given", ["", "a b", "é", "x" * 129, 'a"b'])
async def test_a_malformed_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.get("/health", headers={"x-request-id": given.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.headers["x-request-id"].startswith("req-")


async def test_cors_is_off_by_default(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health", headers={"origin": "http://page"})
    assert "access-control-allow-origin" not in answer.headers


async def test_cors_for_named_origins() -> None:
    async with client_of(toy_services(allow_origins=("http://page",))) as client:
        headers = {"origin": "http://page", "access-control-request-method": "POST"}
        answer = await client.options("/v1/chat/completions", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "http://page"
        assert answer.headers["x-request-id"]
