"""From a typed request to what the engine is asked: prompt ids, sampling parameters, seeds. Ranges are checked here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from gateway.answers.parts import Reader
from gateway.errors import ApiError
from gateway.model.served import ServedModel
from gateway.openai import (
    ChatRequest,
    CompletionDetails,
    CompletionRequest,
    GenerateRequest,
    PromptDetails,
    Usage,
)
from gateway.requests.parse import invalid
from gateway.requests.prompts import check_id, check_ids
from gateway.services import HttpSettings
from gateway.tokenizer.base import Tokenizer
from scheduler.types import SamplingParams

MAX_STOPS = 4
MAX_STOP_CHARS = 1000
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_BAD_WORDS = 256
MAX_SALT_CHARS = 1024
MAX_PRIORITY = 1 << 20
MAX_TOLD = 1 << 19  # log-probabilities of prompts in an answer, over all its choices: some 40 MB of it
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for completions; a chat may use all that fits
SEED_BITS = 63  # of 64: engines compute in signed integers
_SEED_MASK = (1 << SEED_BITS) - 1
_DRAWN_BITS = 53  # a drawn seed survives clients whose numbers are doubles
_SMALLEST_TOP_P = 1e-6  # top_p 0 means "the most likely only" to OpenAI's clients
_COLDEST = 1e-6  # a lower temperature means greedy, and logits divided by it could leave the range of float32


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request is measured against."""

    max_model_len: int
    vocab_size: int  # ids that both the engine and the tokenizer know
    settings: HttpSettings


@dataclass(frozen=True, slots=True)
class TextRules:
    """How tokens become the text of a choice."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False  # what ended the choice stays in its text
    visible_ids: frozenset[int] = frozenset()  # control tokens that are shown
    token_ids: bool = False  # deltas carry them
    reader: Callable[[], Reader] | None = None  # finds reasoning and tool calls; None: all is text


@dataclass(slots=True)
class Place:
    """Where a job runs, as soon as it does: the replica of its first sequence, and after a migration that of those that
    were moved last."""

    replica: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A request in the engine's terms. Choice c of prompt p is sequence p*n + c."""

    prompts: list[list[int]]
    params: list[SamplingParams]  # one a prompt
    seeds: list[int]  # one a sequence
    n: int
    text: TextRules
    priority: int = 0
    salt: bytes = b""
    place: Place = field(default_factory=Place, compare=False)

    @property
    def seed(self) -> int:
        return self.seeds[0]


def check_model(name: str, model: ServedModel) -> None:
    if name != model.name:
        message = f"The model '{name[:100]}' does not exist. This server serves '{model.name}'."
        raise ApiError(404, message, param="model", code="model_not_found")


def in_range(param: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise invalid(param, f"{param} must be between {low} and {high}, but is {value}.", "value_out_of_range")


def holds(param: str, count: int, low: int, high: int, what: str) -> None:
    if not low <= count <= high:
        message = f"{param} must hold between {low} and {high} {what}, but holds {count}."
        raise invalid(param, message, "value_out_of_range")


# sampling parameters


def sampling(request: GenerateRequest, model: ServedModel, limits: Limits, logprobs: int | None) -> SamplingParams:
    """All but max_tokens, which depends on the prompt's length."""
    defaults = model.sampling_defaults
    min_tokens = request.min_tokens or 0
    temperature = _number(request, "temperature", defaults, 1.0, 0, 2)
    in_range("min_tokens", min_tokens, 0, limits.max_model_len)
    return SamplingParams(
        max_tokens=0,
        min_tokens=min_tokens,
        temperature=temperature if temperature >= _COLDEST else 0.0,
        top_p=max(_SMALLEST_TOP_P, _number(request, "top_p", defaults, 1.0, 0, 1)),
        top_k=_top_k(request, defaults, limits.vocab_size),
        min_p=_number(request, "min_p", defaults, 0.0, 0, 1),
        presence=_number(request, "presence_penalty", defaults, 0.0, -2, 2),
        frequency=_number(request, "frequency_penalty", defaults, 0.0, -2, 2),
        repetition=_number(request, "repetition_penalty", defaults, 1.0, 0.01, 10),
        logit_bias=_logit_bias(request.logit_bias, limits.vocab_size),
        stop_ids=_stop_ids(request, model, limits.vocab_size),
        logprobs=logprobs,
        allowed_ids=_allowed_ids(request, limits.vocab_size),
        bad_words=_bad_words(request, model.tokenizer),
        prompt_logprobs=_prompt_logprobs(request),
    )


def _number(
    request: GenerateRequest, name: str, defaults: Mapping[str, float], otherwise: float, low: float, high: float
) -> float:
    value: float | None = getattr(request, name)
    if value is None:
        return float(defaults.get(name, otherwise))
    in_range(name, value, low, high)
    return value


def completion_sampling(
    request: CompletionRequest, model: ServedModel, limits: Limits, candidates: int
) -> SamplingParams:
    """best_of compares candidates by log-probability, and an echo with logprobs tells the prompt's own."""
    logprobs = completion_logprobs(request)
    compared = 0 if logprobs is None and candidates > (request.n or 1) else logprobs
    params = sampling(request, model, limits, compared)
    if logprobs is None or not request.echo:
        return params
    return msgspec.structs.replace(params, prompt_logprobs=max(logprobs, params.prompt_logprobs or 0))


def check_told(request: GenerateRequest, job: Job, times: int = 1) -> None:
    """Bounds what an answer tells of its prompts; a completion's choices each repeat it."""
    per_token = (job.params[0].prompt_logprobs or 0) + 1 if job.params[0].prompt_logprobs is not None else 0
    told = per_token * times * sum(map(len, job.prompts))
    if told > MAX_TOLD:
        name = "prompt_logprobs" if request.prompt_logprobs is not None else "logprobs"
        message = f"{told} log-probabilities of prompts are too many for an answer; at most {MAX_TOLD} are told."
        raise invalid(name, message, "value_out_of_range")


def check_grammar(params: SamplingParams, request: GenerateRequest) -> None:
    """What would leave an answer that is held to a grammar without a token to go on with."""
    if params.grammar is None:
        return
    for name in ("allowed_token_ids", "min_tokens", "ignore_eos"):
        if getattr(request, name):
            message = f"{name} cannot be used where the answer's form is fixed by a schema, a grammar or tools."
            raise invalid(name, message, "conflicting_parameters")


def with_visible(rules: TextRules, request: GenerateRequest, model: ServedModel) -> TextRules:
    if request.skip_special_tokens is False:
        return replace(rules, visible_ids=frozenset(model.tokenizer.special_ids.values()))
    return replace(rules, visible_ids=rules.visible_ids | model.visible_ids) if model.visible_ids else rules


def _top_k(request: GenerateRequest, defaults: Mapping[str, float], vocab_size: int) -> int:
    top_k = request.top_k if request.top_k is not None else int(defaults.get("top_k", 0))
    if top_k < -1:
        raise invalid("top_k", f"top_k must be -1 (off) or more, but is {top_k}.", "value_out_of_range")
    return 0 if top_k == -1 or top_k >= vocab_size else top_k


def _logit_bias(biases: Mapping[str, Any] | None, vocab_size: int) -> tuple[tuple[int, float], ...]:
    if not biases:
        return ()
    holds("logit_bias", len(biases), 0, MAX_BIASES, "ids")
    pairs = []
    for key, bias in biases.items():
        param = f"logit_bias.{key[:20]}"
        if not (key.isascii() and key.isdigit()) or len(key) > 10:
            raise invalid(param, f"logit_bias: the key '{key[:20]}' must be a token id.", "invalid_type")
        check_id(param, int(key), vocab_size)
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise invalid(param, f"Invalid value for {param}: expected a number.", "invalid_type")
        in_range(param, bias, -100, 100)
        pairs.append((int(key), float(bias)))
    return tuple(pairs)


def _stop_ids(request: GenerateRequest, model: ServedModel, vocab_size: int) -> tuple[int, ...]:
    own = request.stop_token_ids or []
    holds("stop_token_ids", len(own), 0, MAX_STOP_IDS, "ids")
    for index, token in enumerate(own):
        check_id(f"stop_token_ids[{index}]", token, vocab_size)
    ends = () if request.ignore_eos else model.eos_ids
    return tuple(dict.fromkeys([*ends, *own]))


def _allowed_ids(request: GenerateRequest, vocab_size: int) -> tuple[int, ...]:
    ids = request.allowed_token_ids
    if ids is None:
        return ()
    if not ids:
        raise invalid("allowed_token_ids", "allowed_token_ids must not be empty.", "value_out_of_range")
    return tuple(dict.fromkeys(check_ids("allowed_token_ids", ids, vocab_size)))


def _bad_words(request: GenerateRequest, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it is and as it is spelled after a space."""
    words = request.bad_words or []
    holds("bad_words", len(words), 0, MAX_BAD_WORDS, "strings")
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        where = f"bad_words[{index}]"
        if not isinstance(word, str):
            raise invalid(where, f"Invalid value for {where}: expected a string.", "invalid_type")
        if not 0 < len(word) <= MAX_STOP_CHARS:
            raise invalid(where, f"{where} must hold between 1 and {MAX_STOP_CHARS} characters.", "value_out_of_range")
        for spelling in (word, " " + word.lstrip()):
            found[tuple(tokenizer.encode(spelling))] = None
    return tuple(found)


def _prompt_logprobs(request: GenerateRequest) -> int | None:
    if request.prompt_logprobs is None:
        return None
    in_range("prompt_logprobs", request.prompt_logprobs, 0, MAX_LOGPROBS)
    if request.stream:
        raise invalid("prompt_logprobs", "prompt_logprobs cannot be streamed.", "conflicting_parameters")
    return request.prompt_logprobs


def stop_strings(stop: Any, param: str = "stop", most: int = MAX_STOPS) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str):
        _check_stop(param, stop)
        return (stop,)
    if not isinstance(stop, list):
        raise invalid(param, f"Invalid value for {param}: expected a string or an array of strings.", "invalid_type")
    if len(stop) > most:
        raise invalid(param, f"{param} holds at most {most} strings, but got {len(stop)}.", "value_out_of_range")
    for index, text in enumerate(stop):
        _check_stop(f"{param}[{index}]", text)
    return tuple(dict.fromkeys(stop))


def _check_stop(param: str, text: Any) -> None:
    if not isinstance(text, str):
        raise invalid(param, f"Invalid value for {param}: expected a string.", "invalid_type")
    if not 0 < len(text) <= MAX_STOP_CHARS:
        message = f"{param} must hold between 1 and {MAX_STOP_CHARS} characters, but holds {len(text)}."
        raise invalid(param, message, "value_out_of_range")


def chat_logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs is not None:
        in_range("top_logprobs", request.top_logprobs, 0, MAX_LOGPROBS)
        if not request.logprobs:
            message = "top_logprobs needs logprobs to be true."
            raise invalid("top_logprobs", message, "conflicting_parameters")
    return (request.top_logprobs or 0) if request.logprobs else None


def completion_logprobs(request: CompletionRequest) -> int | None:
    if request.logprobs is not None:
        in_range("logprobs", request.logprobs, 0, MAX_LOGPROBS)
    return request.logprobs


def check_streaming(request: GenerateRequest) -> None:
    if request.stream_options is not None and not request.stream:
        message = "stream_options is only allowed when stream is true."
        raise invalid("stream_options", message, "conflicting_parameters")


# how many sequences, how long


def num_choices(request: GenerateRequest, num_prompts: int, settings: HttpSettings) -> int:
    n = 1 if request.n is None else request.n
    in_range("n", n, 1, settings.max_choices)
    _check_sequences("n", n, num_prompts, settings)
    return n


def num_candidates(request: CompletionRequest, num_prompts: int, settings: HttpSettings) -> int:
    """best_of: so many are generated, of which the n most likely are answered."""
    n = num_choices(request, num_prompts, settings)
    if request.best_of is None:
        return n
    if request.best_of < n:
        message = f"best_of must be at least n ({n}), but is {request.best_of}."
        raise invalid("best_of", message, "value_out_of_range")
    in_range("best_of", request.best_of, n, settings.max_choices)
    if request.stream and request.best_of > n:
        raise invalid("best_of", "best_of over n cannot be streamed.", "conflicting_parameters")
    _check_sequences("best_of", request.best_of, num_prompts, settings)
    return request.best_of


def _check_sequences(param: str, count: int, num_prompts: int, settings: HttpSettings) -> None:
    total = count * num_prompts
    if total > settings.max_sequences:
        message = f"{num_prompts} prompts with {param}={count} make {total} sequences; at most {settings.max_sequences}"
        raise invalid("prompt" if num_prompts > 1 else param, message + " are allowed.", "value_out_of_range")


def asked_max_tokens(request: GenerateRequest) -> tuple[str, int | None]:
    """With the name of the field that asked. max_completion_tokens replaces max_tokens where both are given."""
    newer = request.max_completion_tokens if isinstance(request, ChatRequest) else None
    param = "max_tokens" if newer is None else "max_completion_tokens"
    asked = request.max_tokens if newer is None else newer
    least = 1 if isinstance(request, ChatRequest) else 0  # 0: only the prompt is computed, for its log-probabilities
    if asked is not None and asked < least:
        raise invalid(param, f"{param} must be at least {least}, but is {asked}.", "value_out_of_range")
    return param, asked


def truncated(request: GenerateRequest, prompt: list[int], max_model_len: int) -> list[int]:
    keep = request.truncate_prompt_tokens
    if keep is None:
        return prompt
    if keep == -1:
        keep = max(1, max_model_len - (asked_max_tokens(request)[1] or 1))
    in_range("truncate_prompt_tokens", keep, 1, max_model_len)
    return prompt[:keep] if request.truncation_side == "right" else prompt[-keep:]


def fit(request: GenerateRequest, prompt_len: int, max_model_len: int, most: int | None) -> int:
    """The max_tokens of a prompt; `most` bounds what nobody asked for. Never cuts a prompt: what does not fit is a
    400 with the counts."""
    source = "messages" if isinstance(request, ChatRequest) else "prompt"
    param, asked = asked_max_tokens(request)
    room = max_model_len - prompt_len
    if room < (1 if asked is None else asked):
        error = _too_long(source, param, prompt_len, asked, max_model_len)
        error.param = param if asked is not None and asked > max_model_len else source
        raise error
    default = room if isinstance(request, ChatRequest) else min(room, COMPLETION_MAX_TOKENS)
    max_tokens = min(default, most or default) if asked is None else asked
    if (request.min_tokens or 0) > max_tokens:
        message = f"min_tokens must be between 0 and {max_tokens} ({param}), but is {request.min_tokens}."
        raise invalid("min_tokens", message, "value_out_of_range")
    return max_tokens


def _too_long(source: str, param: str, prompt_len: int, asked: int | None, max_model_len: int) -> ApiError:
    wanted = f"{prompt_len} in the {source}"
    wanted += " and room for an answer" if asked is None else f" and {asked} in {param}"
    message = (
        f"This server's maximum context length is {max_model_len} tokens, but the request asks for "
        f"{prompt_len + (1 if asked is None else asked)}: {wanted}. Shorten the {source} or ask for fewer tokens."
    )
    return invalid(source, message, "context_length_exceeded")


def check_can_fit(
    source: str, texts: Iterable[str], model: ServedModel, max_model_len: int, *, stripped: bool = False
) -> None:
    """Refuses by its bytes what is hopelessly long: to encode megabytes takes many seconds of a thread that others
    wait for. stripped: white space at the ends does not count, since templates may take it off."""
    fewest = sum(model.tokenizer.fewest_tokens(text.strip() if stripped else text) for text in texts)
    if fewest > max_model_len:
        message = (
            f"This server's maximum context length is {max_model_len} tokens, but the {source} must be at least "
            f"{fewest} tokens long. Shorten the {source}."
        )
        raise invalid(source, message, "context_length_exceeded")


def seeds(seed: int, count: int) -> list[int]:
    """The first sequence has the request's own seed; the others' are mixed from it and their index."""
    first = seed & _SEED_MASK
    return [first] + [_mixed(first, index) & _SEED_MASK for index in range(1, count)]


def _mixed(seed: int, index: int) -> int:
    """The finaliser of splitmix64: neighbouring inputs give unrelated outputs."""
    mask = (1 << 64) - 1
    z = (seed + index * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def asked_seed(request: GenerateRequest, draw: int) -> int:
    if request.seed is None:
        return draw & ((1 << _DRAWN_BITS) - 1)
    in_range("seed", request.seed, -(1 << 63), (1 << 63) - 1)
    return request.seed


def make_job(
    request: GenerateRequest, base: SamplingParams, prompts: list[list[int]], limits: Limits, seed: int, n: int
) -> Job:
    """n: candidates a prompt."""
    prompts = [truncated(request, prompt, limits.max_model_len) for prompt in prompts]
    most = limits.settings.max_tokens_limit
    max_tokens = [fit(request, len(prompt), limits.max_model_len, most) for prompt in prompts]
    return Job(
        prompts=prompts,
        params=[msgspec.structs.replace(base, max_tokens=count) for count in max_tokens],
        seeds=seeds(seed, n * len(prompts)),
        n=n,
        text=TextRules(
            stops=stop_strings(request.stop),
            include_stop=bool(request.include_stop_str_in_output),
            token_ids=bool(request.return_token_ids),
        ),
        priority=_priority(request),
        salt=_salt(request),
    )


def _priority(request: GenerateRequest) -> int:
    priority = request.priority or 0
    in_range("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
    return priority


def _salt(request: GenerateRequest) -> bytes:
    if request.cache_salt is None:
        return b""
    holds("cache_salt", len(request.cache_salt), 1, MAX_SALT_CHARS, "characters")
    return request.cache_salt.encode("utf-8", "surrogatepass")


# answers


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int = 0) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens),
    )
