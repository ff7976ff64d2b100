"""Conversations as nanochat's models were trained on them: control tokens around each message, no template.

    <|bos|> <|user_start|> text <|user_end|> <|assistant_start|> text <|assistant_end|> ... <|assistant_start|>

A text of the system stands before the next user's. In what the assistant has said, calls of its calculator and their
results become control tokens again; in all other text a literal is only text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.errors import ApiError
from gateway.timeline.laps import lap
from gateway.tokenizer.base import Tokenizer

TURNS = ("<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>")
MARKERS = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
BOS = "<|bos|>"
_BEGIN = re.compile(r"<\|(python|output)_start\|>")


class NanochatTemplate:
    source = ""
    variables: frozenset[str] = frozenset()

    def __init__(self, tokenizer: Tokenizer) -> None:
        """The tokenizer has the control tokens above."""
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        with lap("tokenize"):
            ids = [self._special[BOS], *self._turns(messages)]
        if continue_final:
            return ids[:-1]
        return [*ids, self._special["<|assistant_start|>"]] if add_generation_prompt else ids

    def _turns(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[int]:
        instructions: list[str] = []
        for index, message in enumerate(messages):
            role, text = message["role"], str(message.get("content") or "")
            if role == "system":
                instructions.append(text)
            elif role == "user":
                yield self._special["<|user_start|>"]
                yield from self._tokenizer.encode("\n\n".join([*instructions, text]))
                yield self._special["<|user_end|>"]
                instructions = []
            elif role == "assistant" and not instructions:
                yield self._special["<|assistant_start|>"]
                yield from self._said(text)
                yield self._special["<|assistant_end|>"]
            else:
                raise _refused(f"messages[{index}]", "this model's conversations have no such place for it")
        if instructions:
            raise _refused("messages", "a message of the system must stand before one of the user")

    def _said(self, text: str) -> Iterator[int]:
        done = 0
        for start, end, kind in _blocks(text):
            begin, close = f"<|{kind}_start|>", f"<|{kind}_end|>"
            yield from self._tokenizer.encode(text[done:start])
            yield self._special[begin]
            yield from self._tokenizer.encode(text[start + len(begin) : end])
            yield self._special[close]
            done = end + len(close)
        yield from self._tokenizer.encode(text[done:])


def _blocks(text: str) -> Iterator[tuple[int, int, str]]:
    """Calls and results: where the begin marker and the end marker stand, and of which kind they are. Linear: an end
    that was not found once is not looked for again."""
    open_ended: set[str] = set()
    place = 0
    for match in _BEGIN.finditer(text):
        kind = match[1]
        if match.start() < place or kind in open_ended:
            continue
        end = text.find(f"<|{kind}_end|>", match.end())
        if end < 0:
            open_ended.add(kind)
            continue
        yield match.start(), end, kind
        place = end + len(f"<|{kind}_end|>")


def _refused(where: str, why: str) -> ApiError:
    return ApiError(
        400, f"The chat template does not take these messages: {why}.", param=where, code="chat_template_error"
    )
