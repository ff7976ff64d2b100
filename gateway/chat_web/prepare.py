"""From a body of POST /chat/completions to a job: a chat request like any other, with nanochat's defaults."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from gateway import openai
from gateway.chat_web.limits import Asked, Bounds, bounds_of, check, check_num_messages
from gateway.chat_web.record import RecordingWire
from gateway.chat_web.types import ChatRequest, Message
from gateway.errors import ApiError
from gateway.requests.convert import Job
from gateway.requests.explain import Explained, Parameters
from gateway.requests.parse import decode, invalid, others, parse
from gateway.requests.prepare import Prepared, limits, plan_chat
from gateway.services import Services, WebDefaults
from gateway.wires.base import Wire
from gateway.wires.chat_web import ChatWebWire

T = TypeVar("T")
N = TypeVar("N", int, float)
INTEGER = "-?[0-9]{1,18}"
DECIMAL = rf"{INTEGER}(\.[0-9]{{1,18}})?"
_NAMES = ("temperature", "top_k", "max_tokens")


def prepare_chat_web(body: bytes, services: Services) -> Prepared:
    bounds = bounds_of(services.settings)
    parsed = _well_formed(lambda: parse(body, ChatRequest))
    request, ignored = parsed.request, parsed.ignored
    asked = _well_formed(lambda: _asked(request))
    check_num_messages(len(request.messages), bounds)
    messages = [_message(raw, f"messages[{index}]", ignored) for index, raw in enumerate(request.messages)]
    check(asked, messages, bounds)
    given = _with_defaults(asked, services.settings.web_defaults, bounds)
    job, explained = plan_chat(_chat_request(given, messages, services), ignored, services)
    job = _as_there(job, given, limits(services).vocab_size)
    plain = ChatWebWire(job.place)
    wire: Wire = RecordingWire(plain, messages) if services.settings.log_conversations else plain
    return Prepared(job, wire, ignored, True, partial(_explain, explained, asked, job))


def _well_formed(work: Callable[[], T]) -> T:
    """What is no request at all is a 422 there, and a 400 everywhere else here."""
    try:
        return work()
    except ApiError as error:
        if error.status == 400:
            error.status = 422
        raise


def _message(raw: Raw, where: str, ignored: list[str]) -> Message:
    message = _well_formed(lambda: decode(raw, Message, where))
    ignored += others(decode(raw, dict[str, Any], where), {"role", "content"}, where)
    return message


def _asked(request: ChatRequest) -> Asked:
    return Asked(
        _number("temperature", request.temperature, float, DECIMAL),
        _number("top_k", request.top_k, int, INTEGER),
        _number("max_tokens", request.max_tokens, int, INTEGER),
    )


def _number(param: str, value: N | str | None, kind: type[N], form: str) -> N | None:
    if not isinstance(value, str):
        return value
    if re.fullmatch(form, value) is None:
        raise invalid(param, f"Invalid value for {param}: expected a number.", "invalid_type")
    return kind(value)


def _with_defaults(asked: Asked, defaults: WebDefaults, bounds: Bounds) -> WebDefaults:
    """What was asked for, else the defaults as far as this server allows them."""
    temperature, top_k, max_tokens = asked.temperature, asked.top_k, asked.max_tokens
    default_top_k = min(max(defaults.top_k, bounds.min_top_k), bounds.max_top_k)
    return WebDefaults(
        min(defaults.temperature, bounds.max_temperature) if temperature is None else temperature,
        default_top_k if top_k is None else top_k,
        min(defaults.max_tokens, bounds.max_tokens) if max_tokens is None else max_tokens,
    )


def _chat_request(given: WebDefaults, messages: list[Message], services: Services) -> openai.ChatRequest:
    """Without max_tokens, which is cut to the room there is; without top_k, which may be 0 here even where a limit is
    set. All that the model writes is text there, its mark-up too."""
    return openai.ChatRequest(
        model=services.model.name,
        messages=[Raw(openai.encode(message)) for message in messages],
        temperature=given.temperature,
        skip_special_tokens=False,
    )


def _as_there(job: Job, given: WebDefaults, vocab_size: int) -> Job:
    """An answer that the context has less room for than was asked ends there, as it would in nanochat."""
    (params,) = job.params
    top_k = 0 if given.top_k >= vocab_size else given.top_k
    max_tokens = min(given.max_tokens, params.max_tokens)
    params = msgspec.structs.replace(params, top_k=top_k, max_tokens=max_tokens)
    return replace(job, params=[params], text=replace(job.text, reader=None))


def _explain(explained: Explained, asked: Asked, job: Job) -> Parameters:
    sources = {name: "default" if getattr(asked, name) is None else "request" for name in _NAMES}
    told: Parameters = {
        name: {"value": getattr(job.params[0], name), "from": source} for name, source in sources.items()
    }
    return {**explained(), **told}
