"""GPT-2's tokenizer in the three forms that it comes in, against the library's."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import GPT2Tokenizer

from gateway.errors import ModelError
from gateway.model.load import fitted, load_served_model
from gateway.model.resolve import ModelRequest, resolve_model
from gateway.tokenizer.build import load_from_folder, load_from_gguf
from tests.fixtures.gpt2 import END, tiny, tokenizer, write_gguf

TEXTS = [
    "Hello, who are you?",
    " it's 2024, isn't it?\n\n\tYES",
    "naïve café — 🌹🥀 北京 ١٢٣",
    f"one{END}two",
    "   \r\n  x",
    "",
]
CONFIG = {"model_type": "gpt2", "n_positions": 256, "vocab_size": 500, "eos_token_id": 499, "bos_token_id": 499}


@pytest.fixture(scope="module")
def theirs() -> Tokenizer:
    return tokenizer()


@pytest.fixture
def older(theirs: Tokenizer, tmp_path: Path) -> Path:
    """vocab.json and merges.txt, as the first GPT-2 came."""
    content = json.loads(theirs.to_str())
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    vocab = {**content["model"]["vocab"], END: 499}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_vocab_and_merges_equal_the_library(theirs: Tokenizer, older: Path) -> None:
    ours = load_from_folder(older)
    slow = GPT2Tokenizer.from_pretrained(older)
    for text in TEXTS:
        assert ours.encode(text, specials=True) == theirs.encode(text).ids == slow(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text


def test_a_prefix_space_is_put_where_it_is_asked_for(older: Path) -> None:
    plain = load_from_folder(older)
    (older / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    assert load_from_folder(older).encode("Hello") == plain.encode(" Hello")


def test_gguf_equals_the_library(theirs: Tokenizer, tmp_path: Path) -> None:
    path = write_gguf(tiny(), tmp_path / "tiny.gguf", theirs)
    ours = load_from_gguf(path)
    for text in TEXTS:
        assert ours.encode(text, specials=True) == theirs.encode(text).ids
    model = load_served_model(path, "tiny", 0)
    assert (model.eos_ids, model.add_bos, model.context_length, model.chat_template) == ((499,), False, 256, None)


def test_tokenizer_json_equals_the_library(theirs: Tokenizer, tmp_path: Path) -> None:
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = load_served_model(tmp_path, "tiny", 0)
    for text in TEXTS:
        assert model.tokenizer.encode(text, specials=True) == theirs.encode(text).ids
    assert (model.eos_ids, model.context_length) == ((499,), 256)


def test_a_folder_with_the_older_files_is_served(older: Path) -> None:
    (older / "model.safetensors").touch()
    assert resolve_model(ModelRequest(str(older)), {}).format == "safetensors"
    model = load_served_model(older, "tiny", 0)
    assert (model.eos_ids, model.add_bos, model.context_length) == ((499,), False, 256)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", json.dumps({**CONFIG, "model_type": "qwen2"}), "neither of its configurations says"),
        ("vocab.json", "[]", r"vocab\.json"),
        ("vocab.json", '{"a": -1}', "ids reach from -1"),
        ("merges.txt", "a b c", "is not two tokens"),
        ("merges.txt", "zz yy", "not of byte-level tokens in the vocabulary"),
    ],
)
def test_what_is_no_tokenizer_of_gpt2_is_refused(older: Path, name: str, content: str, words: str) -> None:
    (older / name).write_text(content)
    with pytest.raises(ModelError, match=words):
        load_from_folder(older)


# --- a tokenizer that is not the model's own ---


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "tiny.pt"
    path.parent.mkdir()
    path.touch()
    return path


def test_a_checkpoint_without_tokenizer_needs_one(weights: Path) -> None:
    with pytest.raises(ModelError, match="--tokenizer says which"):
        resolve_model(ModelRequest(str(weights)), {})


def test_a_folder_or_a_name_on_the_hub_tells_the_tokenizer(weights: Path, older: Path) -> None:
    resolved = resolve_model(ModelRequest(str(weights), tokenizer=str(older)), {})
    assert (resolved.format, resolved.name, resolved.tokenizer) == ("rosellm", "tiny", older)
    asked: list[Any] = []

    def download(name: str, patterns: list[str]) -> str:
        asked.append((name, patterns))
        return str(older)

    resolved = resolve_model(ModelRequest(str(weights), tokenizer="gpt2"), {}, download=download)
    assert resolved.tokenizer == older
    assert asked[0][0] == "gpt2" and {"vocab.json", "merges.txt", "tokenizer*.json"} <= set(asked[0][1])
    assert not any("safetensors" in pattern for pattern in asked[0][1])


@pytest.mark.parametrize(
    ("tokenizer", "words"), [("/no/such", "no tokenizer '/no/such'"), ("weights", "has no tokenizer.json")]
)
def test_what_is_no_tokenizer_is_named(weights: Path, tokenizer: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        resolve_model(ModelRequest(str(weights), tokenizer=str(weights.parents[1] / tokenizer)), {})


def test_it_knows_the_models_context_once_the_engine_does(weights: Path, older: Path) -> None:
    model = load_served_model(weights, "tiny", 0, "auto", older)
    assert (model.eos_ids, model.context_length) == ((499,), 0)
    assert fitted(model, 512, 128).context_length == 128


def test_it_must_not_know_more_than_the_model(weights: Path, older: Path) -> None:
    with pytest.raises(ModelError, match="500 tokens and the model knows 499: they do not match"):
        fitted(load_served_model(weights, "tiny", 0, "auto", older), 499, 128)


def test_a_folder_with_nothing_but_a_tokenizer_will_do(theirs: Tokenizer, weights: Path, tmp_path: Path) -> None:
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    assert load_served_model(weights, "tiny", 0, "auto", tmp_path).eos_ids == (499,)
