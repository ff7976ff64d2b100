"""The tokenizer as the gateway uses it: added tokens, normaliser, pre-tokeniser and merges in the library's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gateway.tokenizer.bpe import BpeModel, PieceEncoder
from gateway.tokenizer.pretok import Pretokenizer
from gateway.tokenizer.specials import AddedToken, Splitter

_CACHED_PIECES = 1 << 15
_CACHED_CHARACTERS = 32  # longer pieces are rare, and would make the cache's size anyone's guess


@dataclass(frozen=True, slots=True)
class BpeParts:
    """All that makes a tokenizer, whatever file it came from."""

    model: BpeModel
    pretokenizer: Pretokenizer
    normalize: Callable[[str], str]
    added: Sequence[AddedToken]
    token_bytes: Sequence[bytes]  # by id; b"" where an id has no token


class BpeTokenizer:
    """Byte-level BPE. Immutable but for its cache of short pieces, so any number of threads may encode at once."""

    def __init__(self, parts: BpeParts) -> None:
        self.vocab_size = len(parts.token_bytes)
        self.special_ids: Mapping[str, int] = {token.content: token.id for token in parts.added if token.special}
        self._special = frozenset(self.special_ids.values())
        self._token_bytes = parts.token_bytes
        self._normalize = normalize = parts.normalize
        self._splitter = Splitter({token.content: token for token in parts.added if not token.normalized})
        self._normalized_splitter = Splitter({normalize(t.content): t for t in parts.added if t.normalized})
        self._pretokenizer = parts.pretokenizer
        self._encode_piece = PieceEncoder(parts.model).encode
        self._most_bytes = _most_bytes(parts)
        self._mute_bytes = bytes(set(range(256)) - {token[0] for token in parts.token_bytes if len(token) == 1})
        self._encode_short_piece = lru_cache(_CACHED_PIECES)(self._encode_piece)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        ids: list[int] = []
        for part in self._splitter.split(_encodable(text), specials=specials):
            ids += self._encode_unsplit(part, specials) if isinstance(part, str) else [part.id]
        return ids

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """As encode(specials=True), but `mark` is taken out once literals have been found: one inside a literal of a
        control token keeps it text."""
        ids: list[int] = []
        for unsplit in self._splitter.split(_encodable(text), specials=True):
            if isinstance(unsplit, AddedToken):
                ids.append(unsplit.id)
                continue
            for part in self._normalized_splitter.split(self._normalize(unsplit), specials=True):
                ids += self.encode(part.replace(mark, "")) if isinstance(part, str) else [part.id]
        return ids

    def fewest_tokens(self, text: str) -> int:
        if self._most_bytes == 0:
            return 0
        spoken = self._normalize(_encodable(text)).encode().translate(None, self._mute_bytes)
        return len(spoken) // self._most_bytes

    def token_bytes(self, token: int) -> bytes:
        if token < 0:
            raise IndexError(token)
        return self._token_bytes[token]

    def is_special(self, token: int) -> bool:
        return token in self._special

    def decode(self, tokens: list[int], *, skip_special: bool = True) -> str:
        kept = (token for token in tokens if not (skip_special and token in self._special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def _encode_unsplit(self, text: str, specials: bool) -> list[int]:
        ids: list[int] = []
        for part in self._normalized_splitter.split(self._normalize(text), specials=specials):
            ids += self._encode_plain(part) if isinstance(part, str) else [part.id]
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._pretokenizer.pieces(text):
            short = len(piece) <= _CACHED_CHARACTERS
            ids += self._encode_short_piece(piece) if short else self._encode_piece(piece)
        return ids


def _most_bytes(parts: BpeParts) -> int:
    """That one token can stand for in a text. 0: no bound, for there are added tokens that swallow the whitespace
    around them."""
    if any(token.lstrip or token.rstrip for token in parts.added):
        return 0
    return max(map(len, parts.token_bytes), default=0)


def _encodable(text: str) -> str:
    """Half a surrogate pair is no character: JSON can spell one, UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
