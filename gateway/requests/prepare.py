"""From a body to a job for the engine: parse, check, template, tokenise. Blocking: large ones run in a thread."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import msgspec

from gateway.http import faults
from gateway.model.served import ServedModel
from gateway.openai import (
    ChatRequest,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    GenerateRequest,
    Rendered,
    RenderedPrompt,
    Tokenized,
    TokenizeRequest,
)
from gateway.requests import convert, fim
from gateway.requests.chat_prompt import ChatPrompt, encode_chat
from gateway.requests.conversation import (
    chat_messages,
    reasoning_fields,
    text_of,
    text_perhaps_of,
    tool_choice,
    tool_functions,
    unknown_in_choice,
)
from gateway.requests.convert import Job, Limits
from gateway.requests.explain import Explained, explain
from gateway.requests.parse import invalid, parse
from gateway.requests.prompts import Prompt, check_ids, completion_prompts, echo_text, encode_prompt
from gateway.requests.reading import answer_grammar, answer_rules
from gateway.requests.request_limits import check_messages, check_num_messages, check_sampling
from gateway.requests.structured import grammar_of
from gateway.services import HttpSettings, Services
from gateway.timeline.laps import lap
from gateway.wires.base import EVENTS, Framing, Wire, new_head
from gateway.wires.chat import ChatWants, ChatWire
from gateway.wires.completions import CompletionWants, CompletionWire

T = TypeVar("T")
_SOMEWHAT = 8  # contexts: what is cut, left out or only counted may be so long
OFF_LOOP = 1 << 29  # the cost of what must not run on the event loop, whatever its length
SHAPED = 1 << 30  # of what may need a grammar
_SHAPING = (
    *(b'"response_format"', b'"structured_outputs"', b'"guided_', b'"tools"', b'"format"', b'"output_format"'),
    b'"bad_words"',
)
# Of the characters of those names. Nobody writes them so, but whoever hides them.
_ESCAPED = re.compile(rb"\\u00(?:5[fF]|6[1-9a-fA-F]|7[0-9aA])")
_NUM_SHAPING_THREADS = 8  # most of which wait: the grammars are checked elsewhere, few at a time


@dataclass(frozen=True, slots=True)
class Prepared:
    job: Job
    wire: Wire
    ignored: list[str]
    stream: bool
    explain: Explained = dict  # as they will be, and where from
    framing: Framing = EVENTS  # of a stream


Prepare = Callable[[bytes, Services], Prepared]


class Workers:
    """A few threads for what would hold up the event loop, and others for what may wait for a grammar's check."""

    def __init__(self, num_threads: int, inline_bytes: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")
        self._shaping = ThreadPoolExecutor(_NUM_SHAPING_THREADS, thread_name_prefix="shape")
        self._inline_bytes = inline_bytes

    async def run(self, num_bytes: int, work: Callable[[], T]) -> T:
        if num_bytes <= self._inline_bytes:
            return work()
        threads = self._shaping if num_bytes >= SHAPED else self._threads
        with lap("worker"):  # until one of them is free
            return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, _on_thread, work)

    def close(self) -> None:
        for threads in (self._threads, self._shaping):
            threads.shutdown(wait=False, cancel_futures=True)


def _on_thread(work: Callable[[], T]) -> T:
    with lap("prepare"):
        return work()


def cost(body: bytes) -> int:
    """What decides where a body is handled: its length, but short grammars can take long too."""
    is_shaped = any(word in body for word in _SHAPING) or _ESCAPED.search(body) is not None
    return SHAPED if is_shaped else min(len(body), OFF_LOOP)


def limits(services: Services) -> Limits:
    ready = services.engine.ready
    if ready is None:
        raise faults.engine_unavailable(services, "The engine is not ready.")
    vocab_size = min(ready.vocab_size, services.model.tokenizer.vocab_size)
    return Limits(ready.max_model_len, vocab_size, services.settings)


def check_strict(ignored: list[str], settings: HttpSettings) -> None:
    if settings.strict and ignored:
        raise invalid(ignored[0], f"{ignored[0]} has no effect on this server.", "unsupported_parameter")


# chat


def prepare_chat(body: bytes, services: Services) -> Prepared:
    parsed = parse(body, ChatRequest)
    request = parsed.request
    job, explained = plan_chat(request, parsed.ignored, services)
    template = services.model.chat_template
    if template is not None and "reasoning_content" not in template.source:
        parsed.ignored.extend(reasoning_fields(request.messages))
    wants = ChatWants(
        logprobs=bool(request.logprobs),
        reasoning=request.include_reasoning is not False,
        usage=_include_usage(request),
        usage_on_each=_usage_on_each(request),
        prompt=job.prompts[0],
        token_ids=bool(request.return_token_ids),
        prompt_logprobs=request.prompt_logprobs is not None,
        timings=_include_timings(request),
    )
    wire = ChatWire(new_head(services, "chatcmpl"), services.model.tokenizer, wants)
    return Prepared(job, wire, parsed.ignored, bool(request.stream), explained)


def plan_chat(request: ChatRequest, ignored: list[str], services: Services) -> tuple[Job, Explained]:
    """The job of a chat request, whatever API it came by. Adds what has no effect to `ignored`."""
    model, bounds = services.model, limits(services)
    convert.check_model(request.model, model)
    base = convert.sampling(request, model, bounds, convert.chat_logprobs(request))
    _check_cheap(request, bounds)
    prompt = chat_prompt(request, ignored, services, bounds)
    grammar = answer_grammar(grammar_of(request), prompt, model)
    base = msgspec.structs.replace(base, grammar=grammar)
    convert.check_grammar(base, request)
    seed = convert.asked_seed(request, services.random_bits(64))
    n = convert.num_choices(request, 1, bounds.settings)
    job = convert.make_job(request, base, [prompt.ids], bounds, seed, n)
    convert.check_told(request, job)
    rules = answer_rules(_stops_beside(prompt, job, ignored), prompt, model, services.random_bits)
    return replace(job, text=convert.with_visible(rules, request, model)), partial(explain, request, job, model)


def _stops_beside(prompt: ChatPrompt, job: Job, ignored: list[str]) -> convert.TextRules:
    """Calls that are enforced end by their grammar; a stop string would cut their mark-up."""
    if not (prompt.choice.is_forced and job.text.stops):
        return job.text
    ignored.append("stop")
    return replace(job.text, stops=())


def chat_prompt(
    request: ChatRequest, ignored: list[str], services: Services, bounds: Limits | None = None
) -> ChatPrompt:
    """With bounds, what could never fit is refused before it is encoded; without, what is many times too long."""
    model = services.model
    check_num_messages(len(request.messages), services.settings)
    turns = chat_messages(request.messages, ignored)
    check_messages(turns, services.settings)
    functions = tool_functions(request.tools, ignored)
    choice = tool_choice(request.tool_choice, functions, request.parallel_tool_calls)
    ignored += unknown_in_choice(request.tool_choice)
    most = _SOMEWHAT * model.context_length if bounds is None else _most_tokens(request, bounds)
    printed, somewhat = text_of(turns, choice.functions), max(most, _SOMEWHAT * model.context_length)
    convert.check_can_fit("messages", printed, model, most, stripped=True)
    convert.check_can_fit("messages", printed, model, somewhat)
    convert.check_can_fit("messages", text_perhaps_of(turns), model, somewhat)
    return encode_chat(request, turns, choice, model, ignored)


def _most_tokens(request: GenerateRequest, bounds: Limits) -> int:
    """What is cut anyway may be somewhat longer."""
    return bounds.max_model_len * (_SOMEWHAT if request.truncate_prompt_tokens is not None else 1)


# completions


@dataclass(frozen=True, slots=True)
class PlannedCompletion:
    job: Job
    prompts: list[Prompt]
    candidates: int  # a prompt
    explain: Explained


def plan_completion(request: CompletionRequest, services: Services, model: ServedModel) -> PlannedCompletion:
    """The job of a completion, whatever API it came by. `model`: the served one, or one with other defaults."""
    bounds = limits(services)
    convert.check_model(request.model, model)
    _check_cheap(request, bounds)
    prompts = completion_prompts(request.prompt, bounds.vocab_size)
    candidates = convert.num_candidates(request, len(prompts), bounds.settings)
    base = convert.completion_sampling(request, model, bounds, candidates)
    base = msgspec.structs.replace(base, grammar=grammar_of(request))
    convert.check_grammar(base, request)
    for prompt in prompts:
        if isinstance(prompt, str):
            convert.check_can_fit("prompt", [prompt], model, _most_tokens(request, bounds))
    convert.check_can_fit("suffix", [request.suffix or ""], model, bounds.max_model_len)
    ids = _completion_ids(request, prompts, model)
    seed = convert.asked_seed(request, services.random_bits(64))
    job = convert.make_job(request, base, ids, bounds, seed, candidates)
    convert.check_told(request, job, request.n or 1)
    job = replace(job, text=convert.with_visible(job.text, request, model))
    return PlannedCompletion(job, prompts, candidates, partial(explain, request, job, model))


def prepare_completion(body: bytes, services: Services) -> Prepared:
    parsed, model = parse(body, CompletionRequest), services.model
    request = parsed.request
    planned = plan_completion(request, services, model)
    job, prompts = planned.job, planned.prompts
    wants = CompletionWants(
        prompts=job.prompts,
        n=convert.num_choices(request, len(prompts), services.settings),
        candidates=planned.candidates,
        echoes=_echoes(request, prompts, job, services) if request.echo else [],
        logprobs=request.logprobs is not None,
        usage=_include_usage(request),
        usage_on_each=_usage_on_each(request),
        token_ids=bool(request.return_token_ids),
        prompt_logprobs=request.prompt_logprobs is not None,
        timings=_include_timings(request),
    )
    wire = CompletionWire(new_head(services, "cmpl"), model.tokenizer, wants)
    return Prepared(job, wire, parsed.ignored, bool(request.stream), planned.explain)


def _completion_ids(request: CompletionRequest, prompts: list[Prompt], model: ServedModel) -> list[list[int]]:
    add_bos = request.add_special_tokens is not False
    if request.suffix:
        return fim.encode(prompts, request.suffix, model, add_bos)
    return [encode_prompt(prompt, model, add_bos) for prompt in prompts]


def _echoes(request: CompletionRequest, prompts: list[Prompt], job: Job, services: Services) -> list[str]:
    """The prompts' own text; of a cut one, what was left of it."""
    tokenizer = services.model.tokenizer
    if request.truncate_prompt_tokens is not None:
        return [tokenizer.decode(ids) for ids in job.prompts]
    return [echo_text(prompt, tokenizer) for prompt in prompts]


# both


def _check_cheap(request: GenerateRequest, bounds: Limits) -> None:
    """Before any text is tokenised."""
    convert.check_streaming(request)
    convert.asked_max_tokens(request)
    convert.stop_strings(request.stop)
    convert.num_choices(request, 1, bounds.settings)
    check_sampling(request, bounds.settings)


def _include_usage(request: GenerateRequest) -> bool:
    return bool(request.stream_options and request.stream_options.include_usage)


def _include_timings(request: GenerateRequest) -> bool:
    return bool(request.include_timings or (request.stream_options and request.stream_options.include_timings))


def _usage_on_each(request: GenerateRequest) -> bool:
    return bool(request.stream_options and request.stream_options.continuous_usage_stats)


# the pages about prompts


def rendered(prepared: Prepared, services: Services) -> Rendered:
    job, decode = prepared.job, services.model.tokenizer.decode
    prompts = [RenderedPrompt(decode(ids, skip_special=False), ids) for ids in job.prompts]
    return Rendered(prompts, prepared.explain(), prepared.ignored, job.params[0].grammar)


def prepare_tokenize(body: bytes, services: Services) -> tuple[Tokenized, list[str]]:
    """The answer, and fields without effect."""
    parsed, ready = parse(body, TokenizeRequest), services.engine.ready
    ids = _tokenized(parsed.request, parsed.ignored, services)
    texts: list[str] | msgspec.UnsetType = msgspec.UNSET
    if parsed.request.return_token_strs:
        texts = [services.model.tokenizer.decode([id], skip_special=False) for id in ids]
    return Tokenized(len(ids), None if ready is None else ready.max_model_len, ids, texts), parsed.ignored


def _tokenized(request: TokenizeRequest, ignored: list[str], services: Services) -> list[int]:
    model = services.model
    if request.model is not None:
        convert.check_model(request.model, model)
    if (request.prompt is None) == (request.messages is None):
        raise invalid("prompt", "Give either prompt or messages.", "missing_required_parameter")
    if request.prompt is not None:
        if request.tools:
            raise invalid("tools", "tools belong to messages.", "conflicting_parameters")
        convert.check_can_fit("prompt", [request.prompt], model, _SOMEWHAT * model.context_length)
        return encode_prompt(request.prompt, model, request.add_special_tokens is not False)
    fields: dict[str, Any] = {name: getattr(request, name) for name in _SHARED_WITH_CHAT}
    chat = ChatRequest(model=model.name, messages=request.messages or [], **fields)
    return chat_prompt(chat, ignored, services).ids


_SHARED_WITH_CHAT = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")


def prepare_detokenize(body: bytes, services: Services) -> tuple[Detokenized, list[str]]:
    """The answer, and fields without effect."""
    parsed, model = parse(body, DetokenizeRequest), services.model
    request = parsed.request
    if request.model is not None:
        convert.check_model(request.model, model)
    check_ids("tokens", request.tokens, model.tokenizer.vocab_size)
    return Detokenized(model.tokenizer.decode(request.tokens, skip_special=False)), parsed.ignored
