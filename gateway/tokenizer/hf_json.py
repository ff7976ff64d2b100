"""tokenizer.json as far as byte-level BPE needs it. Only the format: what it may hold, not what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from msgspec import Raw, Struct, field

from gateway.errors import ModelError

T = TypeVar("T")
GPT2_END = "<|endoftext|>"  # begins and ends texts, where the configuration names nothing else


class AddedTokenJson(Struct):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True


class NfcJson(Struct, tag="NFC"):
    pass


class NormalizersJson(Struct, tag="Sequence"):
    normalizers: list[NormalizerJson]


NormalizerJson = NfcJson | NormalizersJson


class PatternJson(Struct):
    Regex: str | None = None
    String: str | None = None


class SplitJson(Struct, tag="Split"):
    pattern: PatternJson
    behavior: Literal["Isolated", "Removed"]
    invert: bool = False


class DigitsJson(Struct, tag="Digits"):
    individual_digits: bool = False


class ByteLevelJson(Struct, tag="ByteLevel"):
    add_prefix_space: bool = True
    use_regex: bool = True


class PretokenizersJson(Struct, tag="Sequence"):
    pretokenizers: list[PretokenizerJson]


PretokenizerJson = SplitJson | DigitsJson | ByteLevelJson | PretokenizersJson


class ModelTypeJson(Struct):
    type: str | None = None  # old files have none, and are BPE
    byte_fallback: bool = False


class BpeJson(Struct):
    vocab: dict[str, int]
    merges: list[str | tuple[str, str]]
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    ignore_merges: bool = False


class TokenizerJson(Struct):
    model: Raw
    pre_tokenizer: Raw = field(default_factory=lambda: Raw(b"null"))
    normalizer: Raw = field(default_factory=lambda: Raw(b"null"))
    post_processor: Raw = field(default_factory=lambda: Raw(b"null"))
    added_tokens: list[AddedTokenJson] = []


class ModelJson(Struct):
    """config.json, as far as tokenizers without tokenizer.json need it."""

    model_type: str | None = None


class TokenJson(Struct):
    content: str


class NamedTemplateJson(Struct):
    name: str
    template: str


class TokenizerConfigJson(Struct):
    """tokenizer_config.json"""

    tokenizer_class: str | None = None
    add_prefix_space: bool | None = None
    bos_token: str | TokenJson | None = None
    eos_token: str | TokenJson | None = None
    unk_token: str | TokenJson | None = None
    pad_token: str | TokenJson | None = None
    add_bos_token: bool | None = None
    chat_template: str | list[NamedTemplateJson] | None = None

    def literal(self, name: str) -> str | None:
        token: str | TokenJson | None = getattr(self, f"{name}_token")
        return token.content if isinstance(token, TokenJson) else token


def read_if_there(path: Path, kind: type[T]) -> T:
    return read(path, kind) if path.exists() else kind()


def text(path: Path) -> str:
    """Raises ModelError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: {error}") from error


def read(path: Path, kind: type[T]) -> T:
    """The JSON of a file. Raises ModelError where it is missing or not of that kind."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    return decode(data, kind, str(path))


def decode(data: bytes | Raw, kind: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ModelError(f"{where}: {error}") from error
