"""From a body to a job, and the page that only counts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import ApiError
from gateway.http.body import read_body
from gateway.http.exchange import exchange_of
from gateway.messages.convert import MISNAMED, Translated, translate
from gateway.messages.types import Conversation, MessagesRequest, TokenCount
from gateway.messages.wire import MessagesWire
from gateway.openai import encode
from gateway.requests.convert import Job, check_model, stop_strings
from gateway.requests.explain import SHOWN, Explained, Parameters
from gateway.requests.parse import Parsed, decode, ignored_header, invalid, parse
from gateway.requests.prepare import Prepared, Workers, chat_prompt, check_strict, plan_chat
from gateway.requests.request_limits import check_num_messages, check_sampling
from gateway.services import Services
from gateway.wires.base import new_head

T = TypeVar("T", bound=Conversation)
MAX_STOPS = 16


def prepare_messages(body: bytes, services: Services) -> Prepared:
    parsed, fields = _parsed(body, MessagesRequest)
    request = parsed.request
    check_model(request.model, services.model)
    check_sampling(request, services.settings)
    stops = stop_strings(request.stop_sequences, "stop_sequences", MAX_STOPS)
    translated = _translated(request, fields, services, parsed.ignored)
    if stops and _is_forced(request):
        parsed.ignored.append("stop_sequences")
        stops = ()
    try:
        job, explained = plan_chat(translated.request, parsed.ignored, services)
    except ApiError as error:
        raise translated.renamed(error) from None
    room = job.params[0].max_tokens
    job = _cut(replace(job, text=replace(job.text, stops=stops)), request.max_tokens)
    thinking = request.thinking
    head = new_head(services, "msg")
    wire = MessagesWire(
        replace(head, id=head.id.replace("-", "_", 1)),
        shows_thinking=thinking is None or thinking.display != "omitted",
        fills_context=request.max_tokens > room,
    )
    return Prepared(job, wire, parsed.ignored, bool(request.stream), partial(_explain, explained, job))


def _is_forced(request: MessagesRequest) -> bool:
    """Calls that are enforced end by their grammar; a stop string would cut their mark-up."""
    return request.tool_choice is not None and request.tool_choice.type in ("any", "tool")


def _parsed(body: bytes, kind: type[T]) -> tuple[Parsed[T], dict[str, Raw]]:
    return parse(body, kind, MISNAMED), decode(body, dict[str, Raw])


def _translated(request: Conversation, fields: dict[str, Raw], services: Services, ignored: list[str]) -> Translated:
    check_num_messages(len(request.messages), services.settings)
    try:
        return translate(request, fields, services.model, ignored)
    except RecursionError:  # what could just be read is written again
        raise invalid(None, "The body is nested too deeply.", "invalid_json") from None


def _explain(explained: Explained, job: Job) -> Parameters:
    """With what the chat request did not say."""
    stops = [text[:SHOWN] for text in job.text.stops]
    told: Parameters = {"stop": {"value": stops, "from": "request"}} if stops else {}
    return {**explained(), **told, "max_tokens": {"value": job.params[0].max_tokens, "from": "request"}}


def _cut(job: Job, asked: int) -> Job:
    """The job was planned with all the room there is; more than that may be asked for, and is not refused."""
    max_tokens = min(asked, job.params[0].max_tokens)
    params = [msgspec.structs.replace(each, max_tokens=max_tokens) for each in job.params]
    return replace(job, params=params)


def count_tokens(body: bytes, services: Services) -> tuple[int, list[str]]:
    """As many as the prompt of the same request would have; and what has no effect."""
    parsed, fields = _parsed(body, Conversation)
    check_model(parsed.request.model, services.model)
    translated = _translated(parsed.request, fields, services, parsed.ignored)
    try:
        num_tokens = len(chat_prompt(translated.request, parsed.ignored, services).ids)
    except ApiError as error:
        raise translated.renamed(error) from None
    check_strict(parsed.ignored, services.settings)
    return num_tokens, parsed.ignored


class CountTokens:
    """POST /v1/messages/count_tokens."""

    def __init__(self, services: Services, workers: Workers) -> None:
        self._services = services
        self._workers = workers

    async def answer(self, request: Request) -> Response:
        exchange_of(request.scope).endpoint = "count_tokens"
        services = self._services
        body = await read_body(request.scope, request.receive, services.settings)
        count, ignored = await self._workers.run(len(body), partial(count_tokens, body, services))
        headers = {"x-headrace-ignored": ignored_header(ignored)} if ignored else {}
        return Response(encode(TokenCount(count)), media_type="application/json", headers=headers)
