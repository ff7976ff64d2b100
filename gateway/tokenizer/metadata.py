"""What the gateway wants to know of a model besides its tokenizer: where an answer ends, how long it may be, defaults.

From GGUF metadata, or from a folder's config.json, generation_config.json, tokenizer_config.json and tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Raw, Struct

from gateway.errors import ModelError
from gateway.tokenizer import hf_json
from gateway.tokenizer.build import gguf_family
from gateway.tokenizer.gguf_header import Metadata
from gateway.tokenizer.hf_json import TokenizerConfigJson, read_if_there

_GGUF_END_KEYS = ("eos", "eot", "eom")  # of a text, of a turn, of a message
_GGUF_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_TEMPLATE_TOKENS = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    context_length: int
    eos_ids: tuple[int, ...]  # declared; the chat template may end turns with another one
    bos_id: int | None
    add_bos: bool
    chat_template: str | None
    named_tokens: Mapping[str, str]  # literals that templates know by name, such as bos_token
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)


# GGUF


def gguf_metadata(path: Path, metadata: Metadata) -> ModelMetadata:
    """Raises ModelError."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    literals = tokens if isinstance(tokens, list) else []
    ids = {
        name: _gguf_id(path, metadata, name, len(literals)) for name in ("bos", "unknown", "padding", *_GGUF_END_KEYS)
    }
    ids |= {"unk": ids["unknown"], "pad": ids["padding"]}
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", gguf_family(path, metadata).add_bos)
    template = metadata.get("tokenizer.chat_template")
    return ModelMetadata(
        context_length=_gguf_context_length(path, metadata),
        eos_ids=_unique(ids[name] for name in _GGUF_END_KEYS),
        bos_id=ids["bos"],
        add_bos=add_bos is True and ids["bos"] is not None,
        chat_template=template if isinstance(template, str) else None,
        named_tokens={f"{name}_token": str(literals[id]) for name in _TEMPLATE_TOKENS if (id := ids[name]) is not None},
        sampling_defaults=_numbers({name: metadata.get(key) for key, name in _GGUF_SAMPLING.items()}),
    )


def _gguf_id(path: Path, metadata: Metadata, name: str, num_tokens: int) -> int | None:
    id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if id is None:
        return None
    if not isinstance(id, int) or not 0 <= id < num_tokens:
        raise ModelError(f"{path}: tokenizer.ggml.{name}_token_id is {id!r}, which is no token")
    return id


def _gguf_context_length(path: Path, metadata: Metadata) -> int:
    key = f"{metadata.get('general.architecture')}.context_length"
    length = metadata.get(key)
    if not isinstance(length, int) or length < 1:
        raise ModelError(f"{path}: {key} is {length!r}, and should be a positive number")
    return length


# a folder


class ConfigJson(Struct):
    max_position_embeddings: int | None = None
    n_positions: int | None = None
    vocab_size: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    text_config: ConfigJson | None = None


class GenerationConfigJson(Struct):
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    temperature: float | None = None
    top_k: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class PostProcessorJson(Struct):
    type: str
    processors: list[PostProcessorJson] = []
    single: list[dict[str, Raw]] = []


class SpecialTokenJson(Struct):
    id: str


def folder_metadata(path: Path, special_ids: Mapping[str, int], context_length: int | None = None) -> ModelMetadata:
    """`special_ids` are the tokenizer's; `context_length` is told for a folder that holds a tokenizer only. Raises
    ModelError."""
    config = _config(path) if context_length is None or (path / "config.json").exists() else ConfigJson()
    generation = read_if_there(path / "generation_config.json", GenerationConfigJson)
    tokens = read_if_there(path / "tokenizer_config.json", TokenizerConfigJson)
    named = {f"{name}_token": literal for name in _TEMPLATE_TOKENS if (literal := tokens.literal(name))}
    declared = [*_listed(generation.eos_token_id), *_listed(config.eos_token_id)]
    bos = special_ids.get(named.get("bos_token", ""), _first(generation.bos_token_id, config.bos_token_id))
    return ModelMetadata(
        context_length=_folder_context_length(path, config) if context_length is None else context_length,
        eos_ids=_unique([*declared, special_ids.get(named.get("eos_token", ""))]),
        bos_id=bos,
        add_bos=bos is not None and _adds_bos(path, tokens, named.get("bos_token")),
        chat_template=_folder_template(path, tokens),
        named_tokens=named,
        sampling_defaults=_numbers({name: getattr(generation, name) for name in _GGUF_SAMPLING.values()}),
    )


def folder_vocab_size(path: Path) -> int:
    """Rows of the embedding: may be more than the tokenizer has, for they are often padded."""
    return _config(path).vocab_size


def _config(path: Path) -> ConfigJson:
    config = hf_json.read(path / "config.json", ConfigJson)
    return config.text_config or config


def _folder_context_length(path: Path, config: ConfigJson) -> int:
    length = config.max_position_embeddings or config.n_positions
    if length is None or length < 1:
        raise ModelError(
            f"{path / 'config.json'}: max_position_embeddings is {length!r}, and should be a positive number"
        )
    return length


def _folder_template(path: Path, tokens: TokenizerConfigJson) -> str | None:
    """chat_template.jinja goes before tokenizer_config.json; of several templates, the default one."""
    file = path / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file}: {error}") from error
    if isinstance(tokens.chat_template, list):
        return next((named.template for named in tokens.chat_template if named.name == "default"), None)
    return tokens.chat_template


def _adds_bos(path: Path, tokens: TokenizerConfigJson, bos: str | None) -> bool:
    """Whether the library would put a BOS before raw text: its post-processor decides, else the configuration."""
    file = path / "tokenizer.json"
    if not file.exists():
        return tokens.add_bos_token is True
    raw = hf_json.read(file, hf_json.TokenizerJson).post_processor
    post = hf_json.decode(raw, PostProcessorJson | None, f"{file}: post_processor")  # type: ignore[arg-type]
    templates = [part for part in _processors(post) if part.type == "TemplateProcessing"]
    if not templates:
        return tokens.add_bos_token is True
    first = templates[0].single[0] if templates[0].single else {}
    token = first.get("SpecialToken")
    return token is not None and hf_json.decode(token, SpecialTokenJson, f"{file}: post_processor").id == bos


def _processors(post: PostProcessorJson | None) -> list[PostProcessorJson]:
    return [] if post is None else [post, *post.processors]


# both


def _listed(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _unique(ids: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(id for id in ids if id is not None))


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
