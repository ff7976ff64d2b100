"""Models from files: what is read of a GGUF file and of a folder, and what is refused, in one line that says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from gateway.errors import ModelError
from gateway.model.load import load_served_model
from gateway.model.served import ServedModel
from gateway.tokenizer.build import load_from_gguf
from gateway.tokenizer.gguf_header import read_metadata
from gateway.tokenizer.pretok import GGUF_FAMILIES, LLAMA3, QWEN2, QWEN35, TEKKEN
from tests.fixtures.reference_tokenizers import fuzz, split_then_bytes, train

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])
CONTROL = [
    AddedToken(literal, special=True, normalized=False) for literal in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
]
USERS = [AddedToken(name, normalized=False) for name in ("<think>", "  \n", "naïve")]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# llama.cpp's name -> what the library would use
FAMILIES: dict[str, tuple[pre_tokenizers.PreTokenizer, bool]] = {
    "gpt-2": (BYTES, False),
    "smollm": (DIGITS, False),
    "command-r": (DIGITS, True),
    "olmo": (BYTES, True),
    "llama-bpe": (split_then_bytes(LLAMA3), False),
    "qwen2": (split_then_bytes(QWEN2), True),
    "qwen35": (split_then_bytes(QWEN35), True),
    "tekken": (split_then_bytes(TEKKEN), False),
}


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train(BYTES, added=CONTROL, vocab_size=600)


def write_gguf(path: Path, reference: Tokenizer, pre: str = "gpt-2", **more: Any) -> Path:
    """A GGUF file of metadata only, as llama.cpp's converter writes it: users' tokens as they read."""
    model = json.loads(reference.to_str())["model"]
    tokens = {id: token for token, id in reference.get_vocab(with_added_tokens=True).items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for id, token in reference.get_added_tokens_decoder().items():
        kinds[id] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens[id] for id in sorted(tokens)])
    writer.add_token_types([kinds[id] for id in sorted(tokens)])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    for key, value in more.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_folder(path: Path, reference: Tokenizer, **files: Any) -> Path:
    reference.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 256, "vocab_size": 0}))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_served_model(path, "model", 0)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# GGUF


@pytest.mark.parametrize("name", FAMILIES)
def test_name_in_a_gguf_file_means_the_familys_pretokenizer(name: str, tmp_path: Path) -> None:
    pre, nfc = FAMILIES[name]
    reference = train(pre, nfc=nfc, added=[*CONTROL, *USERS])
    tokenizer = load_from_gguf(write_gguf(tmp_path / "m.gguf", reference, name))
    texts = list(fuzz(3, 600, [token.content for token in (*CONTROL, *USERS)]))
    expected = [encoding.ids for encoding in reference.encode_batch_fast(texts, add_special_tokens=False)]
    assert [tokenizer.encode(text, specials=True) for text in texts] == expected


def test_aliases_of_families() -> None:
    families = GGUF_FAMILIES
    assert families["starcoder"] == families["refact"] == families["smollm"]
    assert families["llama3"] == families["llama-v3"] == families["llama-bpe"]
    assert families["mpt"] == families["olmo"]
    assert families["phi-2"] == families["gpt-2"]


def test_real_model(gguf_path: Path) -> None:
    model = load_served_model(gguf_path, "smollm2", 7)
    assert (model.name, model.created, model.context_length) == ("smollm2", 7, 8192)
    assert model.eos_ids == (2,)
    assert (model.bos_id, model.add_bos) == (1, False)
    assert model.tokenizer.vocab_size == 49152
    assert {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}.items() <= model.tokenizer.special_ids.items()
    assert len(model.tokenizer.special_ids) == 17
    assert model.chat_template is not None


def test_header_reads_what_the_gguf_package_reads(small: Tokenizer, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small, eos_token_id=3, add_bos_token=True, rope_freq_base=1e6)
    fields = gguf.GGUFReader(path).fields.items()
    assert read_metadata(path) == {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}


def test_ids_and_sampling_of_a_gguf_file(small: Tokenizer, tmp_path: Path) -> None:
    bos, eos, end = (small.token_to_id(literal) for literal in ("<s>", "</s>", "<|im_end|>"))
    path = write_gguf(
        tmp_path / "m.gguf",
        small,
        bos_token_id=bos,
        eos_token_id=eos,
        eot_token_id=end,
        add_bos_token=True,
        sampling_temp=0.25,
        sampling_top_k=40,
    )
    model = load_served_model(path, "model", 0)
    assert (model.bos_id, model.add_bos, model.eos_ids) == (bos, True, (eos, end))
    assert model.sampling_defaults == {"temperature": 0.25, "top_k": 40.0}
    assert model.chat_template is None


def test_llama3_adds_a_bos_unless_the_file_says_otherwise(small: Tokenizer, tmp_path: Path) -> None:
    silent = write_gguf(tmp_path / "a.gguf", small, "llama-bpe", bos_token_id=600)
    saying = write_gguf(tmp_path / "b.gguf", small, "llama-bpe", bos_token_id=600, add_bos_token=False)
    assert load_served_model(silent, "model", 0).add_bos
    assert not load_served_model(saying, "model", 0).add_bos


def test_token_that_ends_the_templates_turns_ends_answers(small: Tokenizer, tmp_path: Path) -> None:
    eos, end = small.token_to_id("</s>"), small.token_to_id("<|im_end|>")
    path = write_gguf(tmp_path / "m.gguf", small, eos_token_id=eos, chat_template=CHATML)
    assert load_served_model(path, "model", 0).eos_ids == (eos, end)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_cut_gguf_file_is_refused(share: float, small: Tokenizer, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small)
    data = path.read_bytes()
    path.write_bytes(data[: math.floor(len(data) * share)])
    assert "not a usable GGUF file" in refusal(path)


def test_gguf_file_with_any_byte_changed_loads_or_is_refused(small: Tokenizer, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small, eos_token_id=3, chat_template=CHATML)
    data = path.read_bytes()
    for at in [*range(400), *range(400, len(data), 997)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x91]) + data[at + 1 :])
        try:
            load_served_model(path, "model", 0)
        except ModelError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer_model": "llama"}, "its tokenizer is of type 'llama'"),
        ({"tokenizer_pre": "made-up"}, "its pre-tokenizer 'made-up' is not known"),
        ({"tokenizer_pre": "default"}, "its pre-tokenizer 'default' is not known"),
        ({"token_types": [1]}, "tokenizer.ggml.token_type does not have a type for each of 604 tokens"),
        ({"token_types": [6] * 604}, "falls back to byte tokens"),
        ({"token_merges": ["a"]}, "the merge 'a' is not two tokens"),
        ({"token_merges": ["▁ a"]}, "is not of byte-level tokens in the vocabulary"),
        ({"token_list": ["a"]}, "tokenizer.ggml.token_type does not have a type for each of 1 tokens"),
        ({"eos_token_id": 604}, "eos_token_id is 604, which is no token"),
        ({"context_length": 0}, "llama.context_length is 0"),
        ({"chat_template": "{% if %}"}, "the chat template cannot be read"),
    ],
)
def test_gguf_file_is_refused(change: dict[str, Any], says: str, small: Tokenizer, tmp_path: Path) -> None:
    assert says in refusal(write_gguf(tmp_path / "m.gguf", small, **change))


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.gguf")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"not a model at all")
    assert "does not begin with 'GGUF'" in refusal(other)
    other.write_bytes(b"GGUF\x00\x00\x00\x03" + b"\x00" * 64)
    assert "little endian" in refusal(other)


# folders


def test_folder(small: Tokenizer, tmp_path: Path) -> None:
    bos, eos, end = (small.token_to_id(literal) for literal in ("<s>", "</s>", "<|im_end|>"))
    write_folder(
        tmp_path,
        small,
        config={"max_position_embeddings": 256, "vocab_size": 640, "bos_token_id": 1, "eos_token_id": eos},
        generation_config={"eos_token_id": [end, eos], "temperature": 0.6, "top_p": 0.95, "do_sample": True},
        tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True},
    )
    model = load_served_model(tmp_path, "model", 0)
    assert (model.bos_id, model.add_bos, model.eos_ids) == (bos, True, (end, eos))
    assert (model.context_length, model.tokenizer.vocab_size) == (256, 640)
    assert model.sampling_defaults == {"temperature": 0.6, "top_p": 0.95}


def test_least_folder(small: Tokenizer, tmp_path: Path) -> None:
    model = load_served_model(write_folder(tmp_path, small), "model", 0)
    assert (model.bos_id, model.add_bos, model.eos_ids, model.chat_template) == (None, False, (), None)


def test_post_processor_says_whether_a_bos_is_added(small: Tokenizer, tmp_path: Path) -> None:
    write_folder(tmp_path, small, tokenizer_config={"bos_token": "<s>"})
    root = json.loads((tmp_path / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    root["post_processor"] = {"type": "Sequence", "processors": [byte_level, template]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(root))
    assert load_served_model(tmp_path, "model", 0).add_bos


def prompt(model: ServedModel) -> str:
    assert model.chat_template is not None
    ids = model.chat_template.encode([{"role": "user", "content": "x"}], add_generation_prompt=False)
    return model.tokenizer.decode(ids, skip_special=False)


def test_templates_of_a_folder(small: Tokenizer, tmp_path: Path) -> None:
    write_folder(tmp_path, small, tokenizer_config={"chat_template": "one {{ messages[0].content }}"})
    assert prompt(load_served_model(tmp_path, "model", 0)) == "one x"
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "two"}]
    write_folder(tmp_path, small, tokenizer_config={"chat_template": named})
    assert prompt(load_served_model(tmp_path, "model", 0)) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert prompt(load_served_model(tmp_path, "model", 0)) == "three"


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda root: root.pop(key)


def model_with(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda root: root["model"].update(change)


def root_with(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda root: root.update(change)


def split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (model_with(type="Unigram", vocab=[["a", 0.5]]), "its tokenizer is of type Unigram"),
        (model_with(type="WordPiece"), "its tokenizer is of type WordPiece"),
        (model_with(byte_fallback=True), "byte_fallback"),
        (model_with(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (model_with(dropout=0.1), "dropout"),
        (model_with(unk_token="<nope>"), "the unknown token '<nope>'"),
        (model_with(vocab={"a": -5}, merges=[]), "token ids reach from -5"),
        (model_with(vocab={"a": 1 << 40}, merges=[]), "to 1099511627776"),
        (model_with(vocab="none"), "Expected `object`"),
        (model_with(merges=[["a", "▁"]]), "is not of byte-level tokens"),
        (without("model"), "model"),
        (root_with(normalizer={"type": "Lowercase"}), "Lowercase"),
        (root_with(normalizer={"type": "Prepend", "prepend": "▁"}), "Prepend"),
        (root_with(pre_tokenizer=None), "does not end with ByteLevel"),
        (root_with(pre_tokenizer={"type": "Metaspace"}), "Metaspace"),
        (
            root_with(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 2}),
            "cuts after ByteLevel",
        ),
        (
            root_with(pre_tokenizer={"type": "Sequence", "pretokenizers": [split(r"\bx"), {"type": "ByteLevel"}]}),
            "pattern",
        ),
        (
            root_with(pre_tokenizer={"type": "Sequence", "pretokenizers": [split("x", "MergedWithNext")]}),
            "MergedWithNext",
        ),
    ],
)
def test_tokenizer_json_is_refused(
    change: Callable[[dict[str, Any]], None], says: str, small: Tokenizer, tmp_path: Path
) -> None:
    write_folder(tmp_path, small)
    root = json.loads((tmp_path / "tokenizer.json").read_text())
    change(root)
    (tmp_path / "tokenizer.json").write_text(json.dumps(root))
    assert says in refusal(tmp_path)


def test_library_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert "WordLevel" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["config", "tokenizer", "generation_config", "tokenizer_config"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"eos_token_id": "x", "vocab_size": [], "bos_token": 1, "model": 1}'])
def test_broken_json_is_refused(name: str, text: str, small: Tokenizer, tmp_path: Path) -> None:
    write_folder(tmp_path, small)
    (tmp_path / f"{name}.json").write_text(text)
    assert f"{name}.json" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["config", "tokenizer"])
def test_missing_json_is_refused(name: str, small: Tokenizer, tmp_path: Path) -> None:
    write_folder(tmp_path, small)
    (tmp_path / f"{name}.json").unlink()
    assert f"{name}.json: No such file" in refusal(tmp_path)


def test_eos_outside_the_vocabulary_is_refused(small: Tokenizer, tmp_path: Path) -> None:
    write_folder(tmp_path, small, generation_config={"eos_token_id": 5000})
    assert "token 5000" in refusal(tmp_path)
