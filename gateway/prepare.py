"""From a body to a job for the engine: parse, check, template, tokenise. Blocking: large ones run in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from gateway import convert, faults
from gateway.convert import Job, Limits
from gateway.openai import ChatRequest, CompletionRequest, DetokenizeRequest, GenerateRequest, TokenizeRequest
from gateway.parse import decode, invalid, parse
from gateway.served import ServedModel
from gateway.services import Services
from gateway.stream import ChatWire, CompletionWire, Wire

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prepared:
    job: Job
    wire: Wire
    ignored: list[str]
    stream: bool
    include_usage: bool


Prepare = Callable[[bytes, Services], Prepared]


class Workers:
    """A few threads for what would hold up the event loop."""

    def __init__(self, num_threads: int, inline_bytes: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")
        self._inline_bytes = inline_bytes

    async def run(self, num_bytes: int, work: Callable[[], T]) -> T:
        if num_bytes <= self._inline_bytes:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def limits(services: Services) -> Limits:
    ready = services.engine.ready
    if ready is None:
        raise faults.engine_unavailable(services, "The engine is not ready.")
    vocab_size = min(ready.vocab_size, services.model.tokenizer.vocab_size)
    return Limits(ready.max_model_len, vocab_size, services.settings)


def prepare_chat(body: bytes, services: Services) -> Prepared:
    parsed = parse(body, ChatRequest)
    request, model, bounds = parsed.request, services.model, limits(services)
    convert.check_model(request.model, model)
    logprobs = convert.chat_logprobs(request)
    base = convert.sampling(request, model, bounds, logprobs)
    _check_cheap(request, bounds)
    prompt = encode_chat(request, model, bounds.max_model_len)
    seed = convert.asked_seed(request, services.random_bits(64))
    job = convert.make_job(request, base, [prompt], bounds, seed)
    wire = ChatWire(model.tokenizer, logprobs is not None)
    return Prepared(job, wire, parsed.ignored, bool(request.stream), _include_usage(request))


def prepare_completion(body: bytes, services: Services) -> Prepared:
    parsed = parse(body, CompletionRequest)
    request, model, bounds = parsed.request, services.model, limits(services)
    convert.check_model(request.model, model)
    logprobs = convert.completion_logprobs(request)
    base = convert.sampling(request, model, bounds, logprobs)
    _check_cheap(request, bounds)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise invalid("best_of", "best_of is not supported by this server unless it equals n.", "unsupported_parameter")
    prompts = convert.completion_prompts(request.prompt, bounds.vocab_size)
    convert.num_choices(request, len(prompts), bounds.settings)
    for prompt in prompts:
        if isinstance(prompt, str):
            convert.check_can_fit("prompt", [prompt], model, bounds.max_model_len)
    ids = [convert.encode_prompt(prompt, model) for prompt in prompts]
    seed = convert.asked_seed(request, services.random_bits(64))
    job = convert.make_job(request, base, ids, bounds, seed)
    if request.echo:
        job = replace(job, echoes=[convert.echo_text(prompt, model.tokenizer) for prompt in prompts])
    wire = CompletionWire(model.tokenizer, logprobs is not None, job.echoes, job.n)
    return Prepared(job, wire, parsed.ignored, bool(request.stream), _include_usage(request))


def _check_cheap(request: GenerateRequest, bounds: Limits) -> None:
    """Before any text is tokenised."""
    convert.check_streaming(request)
    convert.asked_max_tokens(request)
    convert.stop_strings(request.stop)
    convert.num_choices(request, 1, bounds.settings)


def encode_chat(
    request: ChatRequest | TokenizeRequest, model: ServedModel, max_model_len: int | None = None
) -> list[int]:
    """With max_model_len, what could never fit is refused before it is encoded."""
    if model.chat_template is None:
        message = f"The model '{model.name}' has no chat template. Use /v1/completions with a prompt."
        raise invalid("messages", message, "no_chat_template")
    messages = convert.chat_messages(request.messages or [])
    if max_model_len is not None:
        convert.check_can_fit("messages", (message["content"] for message in messages), model, max_model_len)
    return model.chat_template.encode(messages)


def _include_usage(request: GenerateRequest) -> bool:
    return bool(request.stream_options and request.stream_options.include_usage)


def prepare_tokenize(body: bytes, services: Services) -> list[int]:
    request, model = decode(body, TokenizeRequest), services.model
    if request.model is not None:
        convert.check_model(request.model, model)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("prompt", "Give either prompt or messages.")
    return encode_chat(request, model) if request.prompt is None else convert.encode_prompt(request.prompt, model)


def prepare_detokenize(body: bytes, services: Services) -> str:
    request, model = decode(body, DetokenizeRequest), services.model
    if request.model is not None:
        convert.check_model(request.model, model)
    convert.check_ids("tokens", request.tokens, model.tokenizer.vocab_size)
    return model.tokenizer.decode(request.tokens, skip_special=False)
