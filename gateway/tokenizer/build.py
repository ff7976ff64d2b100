"""Tokenizers from model files: GGUF metadata, tokenizer.json, or GPT-2's vocab.json and merges.txt. Refuses, by name,
what is not byte-level BPE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import regex
from msgspec import Raw

from gateway.errors import ModelError
from gateway.tokenizer import hf_json
from gateway.tokenizer.bpe import BpeModel, Merge
from gateway.tokenizer.bpe_tokenizer import BpeParts, BpeTokenizer
from gateway.tokenizer.bytelevel import from_spelling, spelling
from gateway.tokenizer.gguf_header import Metadata, Value, read_metadata
from gateway.tokenizer.pretok import (
    GGUF_FAMILIES,
    GPT2,
    Cut,
    Family,
    LeadingSpace,
    Pretokenizer,
    Stage,
    UnsureOfPattern,
    checked,
    digits,
    isolate,
)
from gateway.tokenizer.specials import AddedToken
from gateway.tokenizer.unicode import nfc

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type
_MAX_ID = 1 << 24  # far above any vocabulary: a corrupt id must not become a list of that length


def load_from_gguf(path: Path, metadata: Metadata | None = None) -> BpeTokenizer:
    """The tokenizer of a GGUF file; `metadata` of that file, if it has been read. Raises ModelError."""
    metadata = read_metadata(path) if metadata is None else metadata
    family = gguf_family(path, metadata)
    tokens = _strings(path, metadata, "tokenizer.ggml.tokens")
    kinds = _kinds(path, metadata, len(tokens))
    kinded = list(enumerate(zip(tokens, kinds, strict=True)))
    added = [
        AddedToken(id, token, special=kind != _USER_DEFINED)
        for id, (token, kind) in kinded
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
    ]
    # Tokens that a user defined are stored as they read, mostly; merges may make them too, as they are spelled.
    users = [token for token in added if not token.special]
    vocab = {spelled: token.id for token in users for spelled in (spelling(token.content.encode()), token.content)}
    vocab |= {token: id for id, (token, kind) in kinded if kind == _NORMAL}
    merges = [_pair(str(path), merge) for merge in _strings(path, metadata, "tokenizer.ggml.merges")]
    return BpeTokenizer(
        BpeParts(
            model=_bpe_model(str(path), vocab, merges, added, ignore_merges=family.ignore_merges),
            pretokenizer=Pretokenizer(family.stages),
            normalize=nfc if family.nfc else _unchanged,
            added=added,
            token_bytes=_token_bytes(vocab, added, len(tokens)),
        )
    )


def load_from_folder(path: Path, vocab_size: int = 0) -> BpeTokenizer:
    """The tokenizer of a folder with tokenizer.json, or with GPT-2's two older files; with at least `vocab_size` ids.
    Raises ModelError."""
    if not (path / "tokenizer.json").exists() and (path / "merges.txt").exists():
        return _load_gpt2(path, vocab_size)
    where = str(path / "tokenizer.json")
    root = hf_json.read(path / "tokenizer.json", hf_json.TokenizerJson)
    model = _bpe_json(where, root)
    added = [_added_token(token, model.vocab) for token in root.added_tokens if token.content]
    merges = [_pair(where, merge) if isinstance(merge, str) else merge for merge in model.merges]
    size = max(vocab_size, _size(where, [*model.vocab.values(), *(token.id for token in added)]))
    bpe = _bpe_model(where, model.vocab, merges, added, ignore_merges=model.ignore_merges)
    return BpeTokenizer(
        BpeParts(
            model=replace(bpe, unknown_id=_unknown_id(where, model), fuse_unknown=model.fuse_unk),
            pretokenizer=Pretokenizer(tuple(_stages(where, root.pre_tokenizer))),
            normalize=_normalizer(where, root),
            added=added,
            token_bytes=_token_bytes(model.vocab, added, size),
        )
    )


def _load_gpt2(path: Path, vocab_size: int) -> BpeTokenizer:
    """Of vocab.json and merges.txt, which other families have too: only GPT-2's are known to need nothing else."""
    config = hf_json.read_if_there(path / "config.json", hf_json.ModelJson)
    told = hf_json.read_if_there(path / "tokenizer_config.json", hf_json.TokenizerConfigJson)
    if not (told.tokenizer_class or "").startswith("GPT2Tokenizer") and config.model_type != "gpt2":
        raise ModelError(f"{path} has no tokenizer.json, and neither of its configurations says that it is GPT-2's")
    vocab = hf_json.read(path / "vocab.json", dict[str, int])
    where = str(path / "merges.txt")
    lines = hf_json.text(path / "merges.txt").splitlines()
    merges = [_pair(where, line) for line in lines if line and not line.startswith("#version")]
    special = {hf_json.GPT2_END, *(told.literal(name) for name in ("bos", "eos", "unk", "pad"))}
    added = [AddedToken(vocab[token], token, special=True) for token in vocab if token in special]
    size = max(vocab_size, _size(str(path / "vocab.json"), list(vocab.values())))
    stages: tuple[Stage, ...] = (LeadingSpace(), isolate(GPT2)) if told.add_prefix_space else (isolate(GPT2),)
    return BpeTokenizer(
        BpeParts(
            model=_bpe_model(where, vocab, merges, added, ignore_merges=False),
            pretokenizer=Pretokenizer(stages),
            normalize=_unchanged,
            added=added,
            token_bytes=_token_bytes(vocab, added, size),
        )
    )


def gguf_family(path: Path, metadata: Metadata) -> Family:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelError(f"{path}: its tokenizer is of type {kind!r}; only byte-level BPE ('gpt2') is supported")
    name = metadata.get("tokenizer.ggml.pre")
    if name not in GGUF_FAMILIES or not isinstance(name, str):
        known = ", ".join(GGUF_FAMILIES)
        raise ModelError(f"{path}: its pre-tokenizer {name!r} is not known; known are {known}")
    return GGUF_FAMILIES[name]


# parts of GGUF


def _strings(path: Path, metadata: Metadata, key: str) -> list[str]:
    value: Value | None = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{path}: {key} is missing or not a list of strings")
    return [str(item) for item in value]


def _kinds(path: Path, metadata: Metadata, num_tokens: int) -> list[int]:
    value = metadata.get("tokenizer.ggml.token_type")
    kinds = [kind for kind in value if isinstance(kind, int)] if isinstance(value, list) else []
    if len(kinds) != num_tokens:
        raise ModelError(f"{path}: tokenizer.ggml.token_type does not have a type for each of {num_tokens} tokens")
    if _BYTE in kinds:
        raise ModelError(f"{path}: its tokenizer falls back to byte tokens, which byte-level BPE does not have")
    return kinds


# parts of tokenizer.json


def _bpe_json(where: str, root: hf_json.TokenizerJson) -> hf_json.BpeJson:
    head = hf_json.decode(root.model, hf_json.ModelTypeJson, f"{where}: model")
    if head.type not in (None, "BPE"):
        raise ModelError(f"{where}: its tokenizer is of type {head.type}; only byte-level BPE is supported")
    if head.byte_fallback:
        raise ModelError(f"{where}: its tokenizer uses byte_fallback; only byte-level BPE is supported")
    model = hf_json.decode(root.model, hf_json.BpeJson, f"{where}: model")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(model, name):
            raise ModelError(f"{where}: its BPE model uses {name}, which is not supported")
    return model


def _added_token(token: hf_json.AddedTokenJson, vocab: Mapping[str, int]) -> AddedToken:
    return AddedToken(
        id=vocab.get(token.content, token.id),
        content=token.content,
        special=token.special,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=token.normalized,
    )


def _unknown_id(where: str, model: hf_json.BpeJson) -> int | None:
    if model.unk_token is None:
        return None
    if model.unk_token not in model.vocab:
        raise ModelError(f"{where}: the unknown token {model.unk_token!r} is not in the vocabulary")
    return model.vocab[model.unk_token]


def _normalizer(where: str, root: hf_json.TokenizerJson) -> Callable[[str], str]:
    part = hf_json.decode(root.normalizer, hf_json.NormalizerJson | None, f"{where}: normalizer")  # type: ignore[arg-type]
    return nfc if _has_nfc(part) else _unchanged


def _has_nfc(part: hf_json.NormalizerJson | None) -> bool:
    if isinstance(part, hf_json.NormalizersJson):
        return any(map(_has_nfc, part.normalizers))
    return part is not None


def _unchanged(text: str) -> str:
    return text


def _stages(where: str, raw: Raw) -> Iterator[Stage]:
    root = hf_json.decode(raw, hf_json.PretokenizerJson | None, f"{where}: pre_tokenizer")  # type: ignore[arg-type]
    parts = [] if root is None else list(_flat(root))
    if not parts or not isinstance(parts[-1], hf_json.ByteLevelJson):
        raise ModelError(f"{where}: its pre-tokenizer does not end with ByteLevel; only byte-level BPE is supported")
    if any(isinstance(part, hf_json.ByteLevelJson) for part in parts[:-1]):
        raise ModelError(f"{where}: its pre-tokenizer cuts after ByteLevel, which is not supported")
    for part in parts:
        yield from _stage(where, part)


def _flat(part: hf_json.PretokenizerJson) -> Iterator[hf_json.PretokenizerJson]:
    if isinstance(part, hf_json.PretokenizersJson):
        for inner in part.pretokenizers:
            yield from _flat(inner)
    else:
        yield part


def _stage(where: str, part: hf_json.PretokenizerJson) -> Iterator[Stage]:
    if isinstance(part, hf_json.DigitsJson):
        yield digits(individual=part.individual_digits)
    elif isinstance(part, hf_json.SplitJson):
        yield _cut(where, part)
    elif isinstance(part, hf_json.ByteLevelJson):
        if part.add_prefix_space:
            yield LeadingSpace()
        if part.use_regex:
            yield isolate(GPT2)


def _cut(where: str, part: hf_json.SplitJson) -> Cut:
    try:
        pattern = checked(part.pattern.Regex or regex.escape(part.pattern.String or ""))
    except UnsureOfPattern as error:
        raise ModelError(f"{where}: the pattern {part.pattern.Regex!r} is not supported") from error
    if part.behavior == "Isolated":
        return Cut(pattern)
    return Cut(pattern, keep_matches=part.invert, keep_between=not part.invert)


# what both have


def _pair(where: str, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise ModelError(f"{where}: the merge {merge!r} is not two tokens")
    return left, right


def _bpe_model(
    where: str,
    vocab: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    added: Iterable[AddedToken],
    *,
    ignore_merges: bool,
) -> BpeModel:
    """Without control tokens: no text, and no merge, becomes one. Single bytes stay, whatever else they are."""
    control = {token.content for token in added if token.special and len(token.content) > 1}
    spelled = {token: data for token in vocab if token not in control and (data := from_spelling(token))}
    kept = ((left, right) for left, right in merges if control.isdisjoint((left, right, left + right)))
    return BpeModel(
        ids={data: vocab[token] for token, data in spelled.items()},
        merges=list(_spelled_merges(where, kept, spelled)),
        ignore_merges=ignore_merges,
    )


def _spelled_merges(where: str, merges: Iterable[tuple[str, str]], spelled: Mapping[str, bytes]) -> Iterator[Merge]:
    for left, right in merges:
        pair = spelled.get(left), spelled.get(right)
        if pair[0] is None or pair[1] is None or left + right not in spelled:
            raise ModelError(
                f"{where}: the merge {left!r} + {right!r} is not of byte-level tokens in the vocabulary;"
                " only byte-level BPE is supported"
            )
        yield pair[0], pair[1]


def _token_bytes(vocab: Mapping[str, int], added: Iterable[AddedToken], size: int) -> list[bytes]:
    tokens = [b""] * size
    for token, id in vocab.items():
        spelled = from_spelling(token)
        tokens[id] = token.encode() if spelled is None else spelled
    for literal in added:
        tokens[literal.id] = literal.content.encode()
    return tokens


def _size(where: str, ids: Sequence[int]) -> int:
    lowest, highest = min(ids, default=0), max(ids, default=-1)
    if lowest < 0 or highest > _MAX_ID:
        raise ModelError(f"{where}: token ids reach from {lowest} to {highest}")
    return highest + 1
