"""nanochat's tokenizer: a pickle of a tiktoken.Encoding, read without running anything that it names.

A pickle is a program. Of this one only the class tiktoken.core.Encoding is let in, and a stand-in takes its place,
which keeps the four values that the real one is built from: the real one's way out of a pickle may look a vocabulary up
by name, and fetch it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiktoken import Encoding

from gateway.errors import ModelError

MAX_PICKLE_BYTES = 256 << 20
MAX_ID = 1 << 24
FIELDS = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}


class NanochatTokenizer:
    """Immutable, so any number of threads may encode at once."""

    def __init__(self, encoding: Encoding, ranks: Mapping[bytes, int], special_ids: Mapping[str, int]) -> None:
        self.special_ids: Mapping[str, int] = dict(special_ids)
        self.vocab_size = encoding.n_vocab
        self._encoding = encoding
        self._special = frozenset(special_ids.values())
        self._bytes = [b""] * self.vocab_size
        for token, id in ranks.items():
            self._bytes[id] = token
        for literal, id in special_ids.items():
            self._bytes[id] = literal.encode()
        self._longest = max(map(len, ranks))

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        return self._encoding.encode(text, allowed_special="all") if specials else self._encoding.encode_ordinary(text)

    def fewest_tokens(self, text: str) -> int:
        return len(text.encode("utf-8", "replace")) // self._longest

    def token_bytes(self, token: int) -> bytes:
        if token < 0:
            raise IndexError(token)
        return self._bytes[token]

    def is_special(self, token: int) -> bool:
        return token in self._special

    def decode(self, tokens: list[int], *, skip_special: bool = True) -> str:
        kept = (token for token in tokens if not (skip_special and token in self._special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")


def read_tokenizer(path: Path) -> NanochatTokenizer:
    """Raises ModelError."""
    try:
        if path.stat().st_size > MAX_PICKLE_BYTES:
            raise ModelError(f"{path} has more than {MAX_PICKLE_BYTES >> 20} MiB")
        saved = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except ModelError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise ModelError(f"{path} cannot be read: {error}") from error
    state = saved.state if isinstance(saved, _Saved) else None
    if not isinstance(state, dict) or state.keys() != FIELDS.keys():
        raise ModelError(f"{path} does not hold a tokenizer that tiktoken saved with its vocabulary")
    for name, kind in FIELDS.items():
        if not isinstance(state[name], kind):
            raise ModelError(f"{path}: {name} is not of type {kind.__name__}")
    return _built(path, state)


class _Saved:
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Saved]:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Saved
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and may only hold a tiktoken.Encoding")


def _built(path: Path, state: dict[str, Any]) -> NanochatTokenizer:
    ranks, specials = state["mergeable_ranks"], state["special_tokens"]
    keys_fit = all(isinstance(token, bytes) for token in ranks) and all(isinstance(name, str) for name in specials)
    ids = [*ranks.values(), *specials.values()]
    if not keys_fit or not all(type(id) is int and 0 <= id < MAX_ID for id in ids):
        raise ModelError(f"{path}: its vocabulary is not one of bytes and numbers")
    if len(set(ids)) < len(ids):
        raise ModelError(f"{path}: two tokens of its vocabulary have the same number")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise ModelError(f"{path}: its vocabulary has no token for some byte")
    try:
        return NanochatTokenizer(Encoding(**state), ranks, specials)
    except Exception as error:  # of its pattern: the regular expressions are another library's
        raise ModelError(f"{path}: tiktoken does not take it: {error}") from error
