"""Log-probabilities of used tokens, in the two forms that OpenAI's APIs have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.choice import Mark
from gateway.openai import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from gateway.tokenizer.base import Tokenizer
from scheduler.plan import TokenLogprob

_LEAST = -9999.0  # JSON has no minus infinity


def _bytes(token: int, tokenizer: Tokenizer) -> bytes:
    return tokenizer.token_bytes(token) if 0 <= token < tokenizer.vocab_size else b""


def _text(data: bytes) -> str:
    """Halves of characters stay apart from each other: \\xf0 instead of one U+FFFD for all."""
    return data.decode("utf-8", "backslashreplace")


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
    chosen = [max(_LEAST, mark.logprob.logprob) for mark in marks]
    tops = []
    for mark, text, logprob in zip(marks, tokens, chosen, strict=True):
        top = {_text(_bytes(token, tokenizer)): value for token, value in _top(mark.logprob)}
        tops.append({**top, text: logprob})
    return CompletionLogprobs(tokens, chosen, tops, [offset + mark.offset for mark in marks])


def _top(logprob: TokenLogprob) -> Iterator[tuple[int, float]]:
    for token, value in zip(logprob.top_ids, logprob.top_logprobs, strict=True):
        yield token, max(_LEAST, value)
