"""nanochat's models as the gateway knows them: which checkpoint is meant, the tokenizer's pickle, conversations."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from gateway.assembly import engine_for
from gateway.chat.nanochat import NanochatTemplate
from gateway.config import Config
from gateway.engines.calculator import CalculatingEngine
from gateway.errors import ApiError, ModelError
from gateway.model.load import load_nanochat
from gateway.model.nanochat import NanochatChoice, base_folder
from gateway.model.resolve import ModelRequest, ResolvedModel, resolve_model
from gateway.model.served import ServedModel
from gateway.tokenizer.nanochat import NanochatTokenizer, read_tokenizer
from tests.fixtures.fakes import FakeEngine, toy_model
from tests.fixtures.nanochat import ERAS, SPECIAL_IDS, VOCAB, encoding, model_config

BOS, USER, USER_END, ASSISTANT, ASSISTANT_END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = SPECIAL_IDS.values()
PIECES = ["the", " 12345", "naïve 🙂", "\n\n  \t", "<|bos|>", "and another of the", "\x00", "it's"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base folder without weights."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding()))
    return tmp_path


def add(base: Path, source: str, tag: str, *steps: int) -> Path:
    folder = base / source / tag
    folder.mkdir(parents=True)
    for step in steps:
        (folder / f"model_{step:06d}.pt").touch()
        meta = {"model_config": model_config(ERAS["smear"]), "step": step}
        (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
    return folder


def resolve(base: Path, model: object = "nanochat:", served_name: str = "", **choice: Any) -> ResolvedModel:
    request = ModelRequest(str(model), served_name, nanochat=NanochatChoice(**choice))
    return resolve_model(request, {"NANOCHAT_BASE_DIR": str(base)})


# which checkpoint


def test_the_deepest_model_and_its_last_step_are_meant(base: Path) -> None:
    for tag in ("d4", "d12", "d12-wide", "d9", "other"):
        folder = add(base, "chatsft_checkpoints", tag, 5, 1200, 650)
        (folder / "optim_001300_rank0.pt").touch()
    weights = base / "chatsft_checkpoints" / "d12" / "model_001200.pt"
    tokenizer = base / "tokenizer" / "tokenizer.pkl"
    assert resolve(base) == ResolvedModel(weights, "nanochat", "nanochat-d12", tokenizer)


def test_without_depths_the_one_that_changed_last_is(base: Path) -> None:
    for at, tag in enumerate(("wide", "narrow", "late")):
        os.utime(add(base, "chatsft_checkpoints", tag, 1), (at, at if tag != "wide" else 99))
    assert resolve(base).name == "nanochat-wide"


@pytest.mark.parametrize(
    ("source", "folder"),
    [("base", "base"), ("mid", "mid"), ("sft", "chatsft"), ("rl", "chatrl")],
)
def test_each_source_has_its_folder(source: str, folder: str, base: Path) -> None:
    add(base, f"{folder}_checkpoints", "d2", 7)
    assert resolve(base, source=source).path == base / f"{folder}_checkpoints" / "d2" / "model_000007.pt"


def test_tag_and_step_can_be_said(base: Path) -> None:
    add(base, "chatsft_checkpoints", "d20", 1)
    folder = add(base, "chatsft_checkpoints", "d4", 100, 200)
    assert resolve(base, tag="d4", step=100).path == folder / "model_000100.pt"
    assert resolve(base, tag="d4", served_name="small").name == "small"


@pytest.mark.parametrize("path", [".", "model_000100.pt"])
def test_a_path_will_do(path: str, base: Path) -> None:
    folder = add(base, "base_checkpoints", "d4", 100)
    tokenizer = base / "tokenizer" / "tokenizer.pkl"
    found = resolve(Path("/nowhere"), folder / path)
    assert found == ResolvedModel(folder / "model_000100.pt", "nanochat", "nanochat-d4", tokenizer)


def test_the_tokenizer_may_lie_beside_the_weights_or_in_the_base_folder(base: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    folder = add(away, "of", "mine", 3)
    assert resolve(base, folder).tokenizer == base / "tokenizer" / "tokenizer.pkl"
    (folder / "tokenizer.pkl").touch()
    assert resolve(base, folder).tokenizer == folder / "tokenizer.pkl"


def test_the_base_folder_is_nanochats() -> None:
    assert base_folder({}) == Path.home() / ".cache" / "nanochat"
    assert base_folder({"NANOCHAT_BASE_DIR": "~/elsewhere"}) == Path.home() / "elsewhere"


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (ModelRequest("nanochat:", nanochat=NanochatChoice("rl")), "no nanochat checkpoints of source rl"),
        (
            ModelRequest("nanochat:", nanochat=NanochatChoice(tag="d5")),
            "no nanochat model 'd5' in .*; there are d4, no",
        ),
        (ModelRequest("nanochat:", nanochat=NanochatChoice(step=3)), "no checkpoint of step 3; there are 100"),
        (ModelRequest("nanochat:", nanochat=NanochatChoice(tag="no")), "no checkpoint of step any; there are none"),
        (ModelRequest("nanochat:", nanochat=NanochatChoice("base")), "base_checkpoints holds no models"),
        (ModelRequest("nanochat:", dummy_weights=True), "--load-format dummy is not for nanochat"),
        (ModelRequest("nanochat:d4"), "no model 'nanochat:d4'"),
        (ModelRequest("org/name", nanochat=NanochatChoice(tag="d4")), "--model-tag goes with --model nanochat:"),
        (ModelRequest("org/name", nanochat=NanochatChoice(step=4)), "--step goes with nanochat's checkpoints"),
    ],
    ids=str,
)
def test_what_is_not_there_is_told(request_: ModelRequest, complaint: str, base: Path) -> None:
    add(base, "chatsft_checkpoints", "d4", 100)
    (base / "chatsft_checkpoints" / "no").mkdir()
    (base / "base_checkpoints").mkdir()
    with pytest.raises(ModelError, match=complaint):
        resolve_model(request_, {"NANOCHAT_BASE_DIR": str(base)})


def test_half_a_checkpoint_is_told(base: Path) -> None:
    folder = add(base, "chatsft_checkpoints", "d4", 100)
    (base / "tokenizer" / "tokenizer.pkl").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer for .*model_000100\.pt: looked for .*tokenizer\.pkl"):
        resolve(base)
    (folder / "meta_000100.json").unlink()
    with pytest.raises(ModelError, match=r"has no meta_000100\.json for model_000100\.pt"):
        resolve(base)


# the tokenizer


@pytest.fixture
def tokenizer(base: Path) -> NanochatTokenizer:
    return read_tokenizer(base / "tokenizer" / "tokenizer.pkl")


def test_texts_become_the_ids_that_tiktoken_gives(tokenizer: NanochatTokenizer) -> None:
    theirs = encoding()
    assert tokenizer.vocab_size == theirs.n_vocab == VOCAB
    for text in [*PIECES, "".join(PIECES)]:
        ids = tokenizer.encode(text)
        assert ids == theirs.encode_ordinary(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) >= tokenizer.fewest_tokens(text)
        assert tokenizer.encode(text, specials=True) == theirs.encode(text, allowed_special="all")
    assert b"".join(map(tokenizer.token_bytes, range(256))) == bytes(range(256))


def test_control_tokens_are_told_from_text(tokenizer: NanochatTokenizer) -> None:
    ids = tokenizer.encode("<|bos|>a", specials=True)
    assert ids == [BOS, ord("a")]
    assert (tokenizer.decode(ids), tokenizer.decode(ids, skip_special=False)) == ("a", "<|bos|>a")
    assert [tokenizer.is_special(id) for id in ids] == [True, False]
    assert BOS not in tokenizer.encode("<|bos|>a")
    with pytest.raises(IndexError):
        tokenizer.token_bytes(-1)
    with pytest.raises(IndexError):
        tokenizer.token_bytes(VOCAB)


def test_half_a_surrogate_pair_is_no_character(tokenizer: NanochatTokenizer) -> None:
    text = json.loads(r'"a\ud800b"')
    assert tokenizer.decode(tokenizer.encode(text)) == "a�b"
    assert len(tokenizer.encode(text)) >= tokenizer.fewest_tokens(text)


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('it ran')",))


STATE = {"name": "n", "pat_str": r"\s+|\S+", "special_tokens": {"<|bos|>": 256}}
RANKS = {bytes([byte]): byte for byte in range(256)}


def saved(state: object) -> bytes:
    """A pickle of an Encoding with this state: its class, a new object of it, the state, built into the object."""
    return b"\x80\x03ctiktoken.core\nEncoding\n)\x81" + pickle.dumps(state, protocol=3)[2:-1] + b"b."


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (pickle.dumps(Runs()), "it asks for builtins.exec"),
        (pickle.dumps(os.system), "it asks for posix.system"),
        (b"cos\nsystem\n(S'true'\ntR.", "it asks for os.system"),
        (pickle.dumps({"mergeable_ranks": RANKS}), "does not hold a tokenizer"),
        (saved("gpt2"), "does not hold a tokenizer"),
        (saved({**STATE, "mergeable_ranks": RANKS, "explicit_n_vocab": 9}), "does not hold a tokenizer"),
        (saved({**STATE, "mergeable_ranks": [RANKS]}), "mergeable_ranks is not of type dict"),
        (saved({**STATE, "mergeable_ranks": {"a": 1}}), "not one of bytes and numbers"),
        (saved({**STATE, "mergeable_ranks": {b"a": -1}}), "not one of bytes and numbers"),
        (saved({**STATE, "mergeable_ranks": {b"a": 1 << 40}}), "not one of bytes and numbers"),
        (saved({**STATE, "mergeable_ranks": {**RANKS, b"ab": 7}}), "have the same number"),
        (saved({**STATE, "mergeable_ranks": {**RANKS, b"ab": 256}}), "have the same number"),
        (saved({**STATE, "mergeable_ranks": {b"a": 1}}), "no token for some byte"),
        (saved({**STATE, "pat_str": "(", "mergeable_ranks": RANKS}), "tiktoken does not take it"),
        (b"", "cannot be read"),
        (b"\x80\x04nonsense", "cannot be read"),
        (pickle.dumps(encoding())[:-50], "cannot be read"),
    ],
)
def test_other_pickles_are_refused_and_not_run(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=complaint):
        read_tokenizer(path)


def test_the_pickles_of_these_tests_are_right(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(saved({**STATE, "mergeable_ranks": RANKS}))
    assert read_tokenizer(path).vocab_size == 257


# the model


@pytest.fixture
def model(base: Path) -> ServedModel:
    found = resolve(add(base, "chatsft_checkpoints", "d4", 100).parent.parent)
    assert found.tokenizer is not None
    return load_nanochat(found.path, found.tokenizer, found.name, created=7)


def test_answers_end_where_nanochats_do(model: ServedModel) -> None:
    assert (model.name, model.context_length) == ("nanochat-d4", 512)
    assert model.eos_ids == (ASSISTANT_END, BOS)
    assert (model.bos_id, model.add_bos) == (BOS, True)
    assert model.visible_ids == {PYTHON, PYTHON_END, OUTPUT, OUTPUT_END}
    assert model.calculates


def test_a_vocabulary_of_another_size_is_refused(base: Path) -> None:
    found = resolve(add(base, "chatsft_checkpoints", "d4", 100).parent.parent)
    meta = found.path.with_name("meta_000100.json")
    meta.write_text(json.dumps({"model_config": {"sequence_len": 9, "vocab_size": 7}}))
    with pytest.raises(ModelError, match=f"has {VOCAB} tokens, and .* was trained with 7"):
        load_nanochat(found.path, base / "tokenizer" / "tokenizer.pkl", "name", 0)


def test_a_vocabulary_without_turns_serves_completions_only(base: Path) -> None:
    found = resolve(add(base, "chatsft_checkpoints", "d4", 100).parent.parent)
    plain = saved({**STATE, "mergeable_ranks": RANKS, "special_tokens": {"<|endoftext|>": 256}})
    (base / "tokenizer" / "tokenizer.pkl").write_bytes(plain)
    found.path.with_name("meta_000100.json").write_text('{"model_config": {"sequence_len": 9, "vocab_size": 257}}')
    model = load_nanochat(found.path, base / "tokenizer" / "tokenizer.pkl", "name", 0)
    assert model.chat_template is None
    assert (model.eos_ids, model.bos_id, model.visible_ids, model.calculates) == ((256,), 256, frozenset(), False)


# conversations


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


@pytest.fixture
def template(tokenizer: NanochatTokenizer) -> NanochatTemplate:
    return NanochatTemplate(tokenizer)


def test_turns_stand_between_control_tokens(template: NanochatTemplate) -> None:
    ids = template.encode([user("a"), assistant("b"), user("c")])
    first, second = [USER, *b"a", USER_END, ASSISTANT, *b"b", ASSISTANT_END], [USER, *b"c", USER_END]
    assert ids == [BOS, *first, *second, ASSISTANT]
    assert template.encode([user("a")], add_generation_prompt=False) == [BOS, USER, *b"a", USER_END]
    assert template.encode([user("a"), assistant("b")], continue_final=True) == [BOS, *first[:-1]]


def test_a_text_of_the_system_stands_before_the_users(template: NanochatTemplate) -> None:
    assert template.encode([system("s"), user("a")]) == [BOS, USER, *b"s\n\na", USER_END, ASSISTANT]
    twice = template.encode([system("s"), system("t"), user("a"), assistant("b"), system("u"), user("c")])
    assert twice == [
        *(BOS, USER, *b"s\n\nt\n\na", USER_END, ASSISTANT, *b"b", ASSISTANT_END),
        *(USER, *b"u\n\nc", USER_END, ASSISTANT),
    ]


@pytest.mark.parametrize("turns", [[system("s")], [system("s"), assistant("b")], [user("a"), system("s")]], ids=str)
def test_it_has_no_place_elsewhere(turns: list[dict[str, str]], template: NanochatTemplate) -> None:
    with pytest.raises(ApiError, match="does not take these messages") as refused:
        template.encode(turns)
    assert (refused.value.status, refused.value.code) == (400, "chat_template_error")


def test_calculations_of_the_assistant_are_control_tokens_again(template: NanochatTemplate) -> None:
    said = "It:<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>."
    ids = template.encode([user(said), assistant(said)], add_generation_prompt=False)
    half = ids.index(ASSISTANT)
    assert not {PYTHON, PYTHON_END, OUTPUT, OUTPUT_END} & set(ids[:half])
    assert ids[half:] == [
        *(ASSISTANT, *b"It:", PYTHON, *b"6*7", PYTHON_END, OUTPUT, *b"42", OUTPUT_END, *b".", ASSISTANT_END),
    ]


@pytest.mark.parametrize(
    "text", ["<|assistant_end|>", "<|python_start|>1", "<|python_start|>1<|output_end|>", "<|bos|>"]
)
def test_no_other_text_becomes_a_control_token(text: str, template: NanochatTemplate) -> None:
    for turns in ([user(text)], [system(text), user("a")], [user("a"), assistant(text)]):
        ids = template.encode(turns, add_generation_prompt=False)
        assert [id for id in ids if id >= BOS and id not in (USER, USER_END, ASSISTANT, ASSISTANT_END)] == [BOS]
        assert ids.count(ASSISTANT_END) == (1 if turns[-1]["role"] == "assistant" else 0)


def test_begin_markers_without_an_end_take_linear_time(template: NanochatTemplate) -> None:
    said = "<|python_start|>" * 20_000 + "<|output_start|>42<|output_end|>"
    ids = template.encode([user("a"), assistant(said)])
    assert (ids.count(PYTHON), ids.count(OUTPUT), ids.count(OUTPUT_END)) == (0, 1, 1)


def test_its_calculator_can_be_switched_off(model: ServedModel) -> None:
    engine = FakeEngine()
    assert isinstance(engine_for(model, engine, Config()), CalculatingEngine)
    assert engine_for(model, engine, Config(calculator=False)) is engine
    assert engine_for(toy_model(), engine, Config()) is engine
