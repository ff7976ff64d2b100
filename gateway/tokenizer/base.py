"""What the gateway asks of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Tokenizer(Protocol):
    vocab_size: int  # ids are 0 .. vocab_size-1
    special_ids: Mapping[str, int]  # control tokens by their literal, such as "<|im_end|>"

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Token ids of `text`. With specials, literals of control tokens become those tokens; without, they are
        encoded as the ordinary characters they are. Adds nothing (no BOS)."""

    def fewest_tokens(self, text: str) -> int:
        """A number that len(encode(text)) is not below. Costs next to nothing beside encode, whatever the text."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for. Raises IndexError outside the vocabulary."""

    def is_special(self, token: int) -> bool:
        """Whether the token is a control token, whose bytes are not part of an answer's text."""

    def decode(self, tokens: list[int], *, skip_special: bool = True) -> str:
        """Text of tokens; bytes that are no UTF-8 become U+FFFD."""
