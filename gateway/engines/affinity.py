"""Which beginnings of prompts an engine has seen lately, as far as a gateway can know: what its prefix cache may hold.

A prompt's pieces are named as the engine names its blocks, each by all that stands before it too, only coarser.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

PIECE_TOKENS = 64
DIGEST_BYTES = 16


def pieces(prompt: Sequence[int], salt: bytes) -> Iterator[bytes]:
    """Names of the whole pieces, short of the last token, which is always computed. Lazily: a prompt that no engine
    has seen costs one name to find that out."""
    data = memoryview(array("I", prompt)).cast("B")
    size = PIECE_TOKENS * array("I").itemsize
    parent = blake2b(salt, digest_size=DIGEST_BYTES).digest()
    for i in range((len(prompt) - 1) // PIECE_TOKENS):
        name = blake2b(parent, digest_size=DIGEST_BYTES)
        name.update(data[i * size : (i + 1) * size])
        yield (parent := name.digest())


class Seen:
    """The pieces that one engine has seen last, as many as its cache holds."""

    def __init__(self) -> None:
        self._pieces: OrderedDict[bytes, None] = OrderedDict()

    def matched(self, names: Sequence[bytes]) -> int:
        """Tokens of the longest beginning that it has seen."""
        count = next((i for i, name in enumerate(names) if name not in self._pieces), len(names))
        return count * PIECE_TOKENS

    def note(self, names: Sequence[bytes], max_tokens: int) -> None:
        """max_tokens: that its cache holds. The end of a prompt is forgotten before its beginning, as there."""
        for name in reversed(names):
            self._pieces[name] = None
            self._pieces.move_to_end(name)
        while len(self._pieces) * PIECE_TOKENS > max_tokens:
            self._pieces.popitem(last=False)

    def forget(self, names: Sequence[bytes]) -> None:
        for name in names:
            self._pieces.pop(name, None)

    def clear(self) -> None:
        self._pieces.clear()
