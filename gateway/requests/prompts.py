"""What a prompt may be: text, or token ids, one or several."""

from __future__ import annotations

from typing import Any

from gateway.model.served import ServedModel
from gateway.requests.parse import invalid
from gateway.timeline.laps import lap
from gateway.tokenizer.base import Tokenizer

Prompt = str | list[int]


def completion_prompts(prompt: Any, vocab_size: int) -> list[Prompt]:
    """A string, a list of strings, token ids, or a list of lists of them, as one list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise invalid("prompt", "Invalid value for prompt: expected a string or an array.", "invalid_type")
    if not prompt:
        raise invalid("prompt", "prompt must not be empty.", "value_out_of_range")
    if isinstance(prompt[0], str):
        for index, text in enumerate(prompt):
            if not isinstance(text, str):
                where = f"prompt[{index}]"
                raise invalid(where, f"Invalid value for {where}: expected a string.", "invalid_type")
        return list(prompt)
    if isinstance(prompt[0], list):
        return [check_ids(f"prompt[{index}]", tokens, vocab_size) for index, tokens in enumerate(prompt)]
    return [check_ids("prompt", prompt, vocab_size)]


def check_ids(param: str, tokens: Any, vocab_size: int) -> list[int]:
    if not isinstance(tokens, list):
        raise invalid(param, f"Invalid value for {param}: expected an array of token ids.", "invalid_type")
    if set(map(type, tokens)) == {int} and min(tokens) >= 0 and max(tokens) < vocab_size:
        return tokens
    for index, token in enumerate(tokens):
        check_id(f"{param}[{index}]", token, vocab_size)
    return tokens


def encode_prompt(prompt: Prompt, model: ServedModel, add_bos: bool = True) -> list[int]:
    """Raw text may spell control tokens: its author writes the whole prompt. A BOS is added once at most."""
    with lap("tokenize"):
        ids = model.tokenizer.encode(prompt, specials=True) if isinstance(prompt, str) else prompt
    if isinstance(prompt, str) and add_bos and model.add_bos and model.bos_id is not None and ids[:1] != [model.bos_id]:
        ids = [model.bos_id, *ids]
    if not ids:
        raise invalid("prompt", "prompt must hold at least one token.", "value_out_of_range")
    return ids


def echo_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def check_id(param: str, token: Any, vocab_size: int) -> None:
    if isinstance(token, bool) or not isinstance(token, int):
        raise invalid(param, f"Invalid value for {param}: expected a token id.", "invalid_type")
    if not 0 <= token < vocab_size:
        message = f"{param} must be a token id between 0 and {vocab_size - 1}, but is {token}."
        raise invalid(param, message, "value_out_of_range")
