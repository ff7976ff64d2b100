"""Whether two models turn texts into the same ids and back: one digest of all that says how. Reads no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.errors import ModelError
from gateway.model.resolve import ResolvedModel
from gateway.tokenizer.gguf_header import read_metadata

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "added_tokens.json"),
)
ENDS = ("bos_token_id", "eos_token_id")  # of config.json and generation_config.json, whose other fields may differ


def tokenizer_digest(resolved: ResolvedModel) -> bytes:
    """Of the vocabulary, how text is cut, control tokens and the chat template. Blocks. Raises ModelError."""
    digest = hashlib.sha256()
    for name, content in _parts(resolved):
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _parts(resolved: ResolvedModel) -> Iterator[tuple[str, bytes]]:
    source = resolved.tokenizer or resolved.path
    try:
        if source.is_dir():
            yield from _of_folder(source)
        elif resolved.tokenizer is not None:  # nanochat's pickle
            yield "pickle", source.read_bytes()
        else:
            yield from _of_gguf(source)
    except OSError as error:
        raise ModelError(f"{source}: {error.strerror or error}") from error


def _of_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in FILES:
        if (folder / name).is_file():
            yield name, (folder / name).read_bytes()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            yield name, msgspec.json.encode([_field(folder / name, field) for field in ENDS])


def _field(path: Path, name: str) -> object:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object]).get(name)
    except msgspec.MsgspecError as error:
        raise ModelError(f"{path} is not what it should be: {error}") from error


def _of_gguf(path: Path) -> Iterator[tuple[str, bytes]]:
    for name, value in sorted(read_metadata(path).items()):
        if name.startswith("tokenizer."):
            yield name, msgspec.msgpack.encode(value)
