"""Log-probabilities of used tokens, in the two forms that OpenAI's APIs have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.answers.choice import Delta, Mark
from gateway.answers.text import Utf8Stream
from gateway.openai import ChatLogprob, ChatLogprobs, CompletionLogprobs, PromptLogprob, PromptLogprobs, TopLogprob
from gateway.tokenizer.base import Tokenizer
from scheduler.plan import PromptResult, TokenLogprob

_LEAST = -9999.0  # JSON has no minus infinity


def _bytes(token: int, tokenizer: Tokenizer) -> bytes:
    return tokenizer.token_bytes(token) if 0 <= token < tokenizer.vocab_size else b""


def _text(data: bytes) -> str:
    """Halves of characters stay apart from each other: \\xf0 instead of one U+FFFD for all."""
    return data.decode("utf-8", "backslashreplace")


def token_text(token: int, tokenizer: Tokenizer) -> str:
    return _text(_bytes(token, tokenizer))


def chat_logprobs(marks: Sequence[Mark], tokenizer: Tokenizer) -> ChatLogprobs:
    return ChatLogprobs([_chat_entry(mark, tokenizer) for mark in marks])


def _chat_entry(mark: Mark, tokenizer: Tokenizer) -> ChatLogprob:
    data = _bytes(mark.token, tokenizer)
    top = []
    for token, logprob in _top(mark.logprob):
        other = _bytes(token, tokenizer)
        top.append(TopLogprob(_text(other), logprob, list(other)))
    return ChatLogprob(_text(data), max(_LEAST, mark.logprob.logprob), list(data), top)


def completion_logprobs(marks: Sequence[Mark], tokenizer: Tokenizer, offset: int) -> CompletionLogprobs:
    """`offset`: characters before the choice's own text, which is an echoed prompt."""
    tokens = [_text(_bytes(mark.token, tokenizer)) for mark in marks]
    chosen: list[float | None] = [max(_LEAST, mark.logprob.logprob) for mark in marks]
    tops: list[dict[str, float] | None] = [
        _tops(mark.logprob, text, tokenizer) for mark, text in zip(marks, tokens, strict=True)
    ]
    return CompletionLogprobs(tokens, chosen, tops, [offset + mark.offset for mark in marks])


def _tops(logprob: TokenLogprob, text: str, tokenizer: Tokenizer) -> dict[str, float]:
    """The most likely ones, and the chosen one always."""
    top = {_text(_bytes(token, tokenizer)): value for token, value in _top(logprob)}
    return {**top, text: max(_LEAST, logprob.logprob)}


def echoed_logprobs(
    result: PromptResult | None, prompt: Sequence[int], tokenizer: Tokenizer, echo: str
) -> CompletionLogprobs:
    """Of a prompt's own tokens; the first has none, for nothing predicted it. Offsets are places in `echo`, where a
    control token stands only if the prompt spelled it."""
    found = _found(result, prompt)
    tokens = [_text(_bytes(token, tokenizer)) for token in prompt]
    offsets, size, stream = [], 0, Utf8Stream()
    for token in prompt:
        offsets.append(size)
        data = _bytes(token, tokenizer)
        hidden = tokenizer.is_special(token) and not echo.startswith(_text(data), size)
        size += 0 if hidden else len(stream.push(data))
    chosen = [None, *(max(_LEAST, each.logprob) for each in found)]
    tops = [_tops(each, text, tokenizer) for each, text in zip(found, tokens[1:], strict=True)]
    return CompletionLogprobs(tokens, chosen, [None, *tops], offsets)


def prompt_logprobs(result: PromptResult | None, prompt: Sequence[int], tokenizer: Tokenizer) -> PromptLogprobs:
    told: PromptLogprobs = [None]
    for token, each in zip(prompt[1:], _found(result, prompt), strict=True):
        likely = {str(other): (value, place) for place, (other, value) in enumerate(_top(each), start=1)}
        likely[str(token)] = (max(_LEAST, each.logprob), each.rank)
        told.append(
            {
                key: PromptLogprob(value, rank, _text(_bytes(int(key), tokenizer)))
                for key, (value, rank) in likely.items()
            }
        )
    return told


def _found(result: PromptResult | None, prompt: Sequence[int]) -> Sequence[TokenLogprob]:
    found = None if result is None else result.logprobs
    if found is None or len(found) != len(prompt) - 1:
        raise RuntimeError(f"the engine sent {len(found or ())} logprobs for a prompt of {len(prompt)} tokens")
    return found


def mean_logprob(delta: Delta) -> float:
    """A token of it; what says nothing at all is the least likely."""
    values = [max(_LEAST, mark.logprob.logprob) for mark in delta.marks or ()]
    return sum(values) / len(values) if values else _LEAST


def _top(logprob: TokenLogprob) -> Iterator[tuple[int, float]]:
    for token, value in zip(logprob.top_ids, logprob.top_logprobs, strict=True):
        yield token, max(_LEAST, value)
