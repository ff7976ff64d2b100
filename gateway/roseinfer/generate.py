"""POST /generate: a prompt goes on, as roseinfer's series of articles teaches it. Runs as any completion does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
from msgspec import Struct

from gateway.answers.choice import Delta
from gateway.errors import ApiError
from gateway.openai import CompletionRequest, Usage, encode
from gateway.requests.convert import Job, in_range
from gateway.requests.explain import Parameters
from gateway.requests.parse import SAMPLING, invalid, parse
from gateway.requests.prepare import Prepared, limits, plan_completion
from gateway.requests.request_limits import check_sampling
from gateway.services import GenerateDefaults, HttpSettings, Services
from gateway.timeline.laps import Laps
from gateway.wires.base import PLAIN_TEXT

MAX_NEW_TOKENS = 64  # where the request says nothing
MISNAMED: Mapping[str, str] = {
    **SAMPLING,
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "n_predict"), "max_new_tokens"),
    **dict.fromkeys(("inputs", "input", "text", "messages"), "prompt"),
    **dict.fromkeys(("parameters", "sampling_params"), "fields beside prompt"),
    "ignore_eos": "stop_on_eos",
}


class RoseinferRequest(Struct, kw_only=True):
    prompt: str
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop_on_eos: bool | None = None
    do_sample: bool | None = None
    stream: bool | None = None


class GeneratedText(Struct, frozen=True):
    text: str  # the prompt, and what follows


def prepare_generate(body: bytes, services: Services) -> Prepared:
    parsed = parse(body, RoseinferRequest, MISNAMED)
    _check(parsed.request, services)
    request = with_defaults(parsed.request, _allowed(services.settings))
    # Of the model's own defaults roseinfer knew nothing: a penalty among them would change what greedy means.
    model = replace(services.model, sampling_defaults={})
    try:
        job = plan_completion(_completion(request, services), services, model).job
    except ApiError as error:
        raise _renamed(error) from None
    if request.max_new_tokens is None:
        job = _with_length(job, services)
    explained = partial(_explain, parsed.request, request, job)
    wire = TextWire(request.prompt)
    return Prepared(job, wire, parsed.ignored, bool(request.stream), explained, PLAIN_TEXT)


def with_defaults(request: RoseinferRequest, defaults: GenerateDefaults) -> RoseinferRequest:
    """Of how tokens are chosen, and whether the end of a text ends the answer."""
    unsaid = {name: getattr(defaults, name) for name in GenerateDefaults.__slots__ if getattr(request, name) is None}
    return msgspec.structs.replace(request, **unsaid)


def _allowed(settings: HttpSettings) -> GenerateDefaults:
    """What nobody asked for is not refused: defaults stay within what may be asked for."""
    defaults, most = settings.generate, settings.max_top_k
    top_k = defaults.top_k if most is None else min(defaults.top_k, most)
    return replace(defaults, temperature=min(defaults.temperature, settings.max_temperature), top_k=top_k)


def _check(request: RoseinferRequest, services: Services) -> None:
    """What the completion would not be told of, because it changes nothing there."""
    if request.max_new_tokens is not None and request.max_new_tokens < 0:
        message = f"max_new_tokens must be at least 0, but is {request.max_new_tokens}."
        raise invalid("max_new_tokens", message, "value_out_of_range")
    if request.temperature is not None:
        in_range("temperature", request.temperature, 0, 2)
    if request.top_p is not None:
        in_range("top_p", request.top_p, 0, 1)
    if request.top_k is not None and request.top_k < -1:
        raise invalid("top_k", f"top_k must be -1 (off) or more, but is {request.top_k}.", "value_out_of_range")
    settings = services.settings
    check_sampling(_Asked(request.temperature, request.top_k or None, None), settings)


@dataclass(frozen=True, slots=True)
class _Asked:
    temperature: float | None
    top_k: int | None
    max_tokens: int | None


def _completion(request: RoseinferRequest, services: Services) -> CompletionRequest:
    """As roseinfer has it, top_k and top_p of 0 are off, and an empty prompt is the end of a text before it."""
    samples = bool(request.do_sample) and bool(request.temperature)
    ends = services.model.eos_ids[:1]
    return CompletionRequest(
        model=services.model.name,
        prompt=request.prompt if request.prompt or not ends else list(ends),
        max_tokens=request.max_new_tokens,
        temperature=request.temperature if samples else 0.0,
        top_k=(request.top_k or None) if samples else None,
        top_p=(request.top_p or None) if samples else None,
        ignore_eos=not request.stop_on_eos,
        stream=request.stream,
    )


def _with_length(job: Job, services: Services) -> Job:
    """What nobody asked for must fit beside the prompt, and be allowed."""
    bounds = limits(services)
    room = bounds.max_model_len - len(job.prompts[0])
    most = min(MAX_NEW_TOKENS, room, bounds.settings.max_tokens_limit or MAX_NEW_TOKENS)
    return replace(job, params=[msgspec.structs.replace(params, max_tokens=most) for params in job.params])


def _renamed(error: ApiError) -> ApiError:
    """The same error by this request's names."""
    param = "max_new_tokens" if error.param == "max_tokens" else error.param
    message = re.sub(r"\bmax_tokens\b", "max_new_tokens", error.message)
    return ApiError(error.status, message, type=error.type, param=param, code=error.code, headers=error.headers)


def _explain(asked: RoseinferRequest, request: RoseinferRequest, job: Job) -> Parameters:
    params = job.params[0]
    values = {
        "max_new_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "stop_on_eos": request.stop_on_eos,
        "do_sample": request.do_sample,
    }
    found: Parameters = {
        name: {"value": value, "from": "default" if getattr(asked, name) is None else "request"}
        for name, value in values.items()
    }
    return {**found, "seed": {"value": job.seed, "from": "drawn"}}


@dataclass(frozen=True, slots=True)
class TextWire:
    """Whole: the prompt with what follows. Streamed: what follows, as plain text."""

    prompt: str

    def opening(self) -> bytes:
        return b""

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        return delta.text.encode()

    def ending(self, usage: Usage, laps: Laps) -> bytes:
        return b""

    def failure(self, error: ApiError) -> bytes:
        """Never sent: PLAIN_TEXT cannot tell an error from an answer."""
        return b""

    def whole(self, deltas: Sequence[Delta], usage: Usage, laps: Laps) -> bytes:
        body: bytes = encode(GeneratedText(self.prompt + deltas[0].text))
        return body
