"""A model as the gateway serves it, from a GGUF file, a folder or a nanochat checkpoint. Reads no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msgspec import Struct

from gateway.answers.reasoning import reasoning_format
from gateway.chat.jinja import JinjaTemplate
from gateway.chat.nanochat import BOS, MARKERS, TURNS, NanochatTemplate
from gateway.errors import ModelError
from gateway.model.served import ServedModel
from gateway.tokenizer import hf_json
from gateway.tokenizer.bpe_tokenizer import BpeTokenizer
from gateway.tokenizer.build import load_from_folder, load_from_gguf
from gateway.tokenizer.gguf_header import read_metadata
from gateway.tokenizer.metadata import ModelMetadata, folder_metadata, folder_vocab_size, gguf_metadata
from gateway.tokenizer.nanochat import read_tokenizer
from gateway.tools.choose import choose


def load_served_model(
    path: Path, name: str, created: int, tool_parser: str = "auto", tokenizer_path: Path | None = None
) -> ServedModel:
    """`tool_parser`: the format of tool calls, or auto: as the template tells. `tokenizer_path`: a folder whose
    tokenizer is used instead of the model's own, until `fitted` without knowing the model's context. Raises ModelError,
    in one line, for anything that cannot be served."""
    if tokenizer_path is not None:
        path = tokenizer_path
        tokenizer, metadata = _read_tokenizer(path)
    else:
        tokenizer, metadata = _read_folder(path) if path.is_dir() else _read_gguf(path)
    template = None
    if metadata.chat_template is not None:
        template = _template(path, metadata.chat_template, tokenizer, metadata)
    _check_ids(path, metadata, tokenizer)
    source = metadata.chat_template or ""
    override = None if tool_parser == "auto" else tool_parser
    return ServedModel(
        name=name,
        created=created,
        tokenizer=tokenizer,
        chat_template=template,
        eos_ids=_eos_ids(metadata, template),
        bos_id=metadata.bos_id,
        add_bos=metadata.add_bos,
        context_length=metadata.context_length,
        sampling_defaults=metadata.sampling_defaults,
        tool_format=choose(source, tokenizer.special_ids, None, override),
        reasoning=reasoning_format(source),
    )


def fitted(model: ServedModel, vocab_size: int, context_length: int) -> ServedModel:
    """One with another's tokenizer, once the engine has told of its weights. Raises ModelError."""
    num_tokens = model.tokenizer.vocab_size
    if num_tokens > vocab_size:
        raise ModelError(f"the tokenizer has {num_tokens} tokens and the model knows {vocab_size}: they do not match")
    return replace(model, context_length=context_length)


def _read_tokenizer(path: Path) -> tuple[BpeTokenizer, ModelMetadata]:
    tokenizer = load_from_folder(path)
    return tokenizer, folder_metadata(path, tokenizer.special_ids, context_length=0)


def load_nanochat(path: Path, tokenizer_path: Path, name: str, created: int, tool_parser: str = "auto") -> ServedModel:
    """Of a nanochat checkpoint, whose model_<step>.pt is at `path`. Raises ModelError."""
    meta = hf_json.read(path.with_name(path.name.replace("model_", "meta_")).with_suffix(".json"), MetaJson)
    config, tokenizer = meta.model_config, read_tokenizer(tokenizer_path)
    if tokenizer.vocab_size != config.vocab_size:
        raise ModelError(
            f"{tokenizer_path} has {tokenizer.vocab_size} tokens, and {path} was trained with {config.vocab_size}"
        )
    special = tokenizer.special_ids
    bos = special.get(BOS, special.get("<|endoftext|>"))
    chats = {BOS, *TURNS, *MARKERS} <= special.keys()
    ends = (special.get("<|assistant_end|>"), bos)
    return ServedModel(
        name=name,
        created=created,
        tokenizer=tokenizer,
        chat_template=NanochatTemplate(tokenizer) if chats else None,
        eos_ids=tuple(id for id in ends if id is not None),
        bos_id=bos,
        add_bos=bos is not None,
        context_length=config.sequence_len,
        tool_format=choose("", special, None, None if tool_parser == "auto" else tool_parser),
        visible_ids=frozenset(special[marker] for marker in MARKERS if chats),
        calculates=chats,
    )


class ModelConfigJson(Struct):
    sequence_len: int
    vocab_size: int


class MetaJson(Struct):
    model_config: ModelConfigJson


def _read_gguf(path: Path) -> tuple[BpeTokenizer, ModelMetadata]:
    header = read_metadata(path)
    return load_from_gguf(path, header), gguf_metadata(path, header)


def _read_folder(path: Path) -> tuple[BpeTokenizer, ModelMetadata]:
    tokenizer = load_from_folder(path, folder_vocab_size(path))
    return tokenizer, folder_metadata(path, tokenizer.special_ids)


def _template(path: Path, source: str, tokenizer: BpeTokenizer, metadata: ModelMetadata) -> JinjaTemplate:
    try:
        return JinjaTemplate(source, tokenizer, metadata.named_tokens)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _eos_ids(metadata: ModelMetadata, template: JinjaTemplate | None) -> tuple[int, ...]:
    """What ends a text, and what the template ends a turn with."""
    turn_end = None if template is None else template.turn_end_id()
    ids = metadata.eos_ids if turn_end is None else (*metadata.eos_ids, turn_end)
    return tuple(dict.fromkeys(ids))


def _check_ids(path: Path, metadata: ModelMetadata, tokenizer: BpeTokenizer) -> None:
    for id in (*metadata.eos_ids, *([] if metadata.bos_id is None else [metadata.bos_id])):
        if not 0 <= id < tokenizer.vocab_size:
            raise ModelError(f"{path}: token {id} begins or ends texts, but the vocabulary has {tokenizer.vocab_size}")
