"""What --model may be, and the one line for everything else."""

import json
from pathlib import Path

import pytest
from huggingface_hub import errors

from gateway.errors import ModelError
from gateway.model import resolve as models
from gateway.model.fetch import DEFAULT_MODEL
from gateway.model.resolve import ModelRequest, ResolvedModel, download_from_hub, resolve_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as transformers writes it."""
    path = tmp_path / "my-model"
    path.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_text("{}")
    (path / "model.safetensors").touch()
    return path


def resolve(model: object, **more: object) -> ResolvedModel:
    return resolve_model(ModelRequest(str(model), **more), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [DEFAULT_MODEL.name, DEFAULT_MODEL.name.lower(), DEFAULT_MODEL.name.upper()])
def test_the_default_is_found_by_its_name_in_any_case(name: str, gguf_path: Path) -> None:
    resolved = resolve_model(ModelRequest(name), {"HEADRACE_CACHE": str(gguf_path.parent.parent)})
    assert resolved == ResolvedModel(gguf_path, "gguf", DEFAULT_MODEL.name)


def test_a_gguf_file_is_named_after_itself(tmp_path: Path) -> None:
    file = tmp_path / "Llama-3.Q4_0.gguf"
    file.touch()
    assert resolve(file) == ResolvedModel(file, "gguf", "Llama-3.Q4_0")


def test_a_folder_is_named_after_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(folder) == ResolvedModel(folder, "safetensors", "my-model")
    monkeypatch.chdir(folder)
    assert resolve(".").name == "my-model"


def test_the_served_name_overrides(folder: Path) -> None:
    assert resolve(folder, served_name="gpt-4").name == "gpt-4"


def test_dummy_weights_need_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert resolve(folder, dummy_weights=True).format == "dummy"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"my-model has no {name}"):
        resolve(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        resolve(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shards = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / models.SHARD_INDEX).write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors"):
        resolve(folder)


@pytest.mark.parametrize("text", ["not json", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / models.SHARD_INDEX).write_text(text)
    with pytest.raises(ModelError, match="is not an index of weights"):
        resolve(folder)


@pytest.mark.parametrize("model", ["nothing-here", "/no/such/folder", "./no/model.gguf", "models/none.gguf"])
def test_what_is_nothing_is_one_line_with_what_was_looked_for(model: str) -> None:
    with pytest.raises(ModelError) as refused:
        resolve(model)
    assert model in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model", ["x" * 300, "~nobody-here/model.gguf"], ids=["too long a name", "no such user"])
def test_what_the_system_does_not_look_up_is_one_line(model: str, folder: Path) -> None:
    for name, tokenizer in ((model, ""), (folder, model)):
        with pytest.raises(ModelError) as refused:
            resolve(name, tokenizer=tokenizer)
        assert "\n" not in str(refused.value)


def test_a_folder_that_may_not_be_looked_into_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ModelError, match=rf"^{folder}: Permission denied$"):
        resolve(folder)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelError, match=r"neither a \.gguf file nor a folder"):
        resolve(tmp_path / "model.bin")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match="dummy needs a folder"):
        resolve(tmp_path / "model.gguf", dummy_weights=True)


def test_a_hub_name_is_downloaded_and_keeps_its_name(folder: Path) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, patterns: list[str]) -> str:
        asked.append((name, patterns))
        return str(folder)

    request = ModelRequest("org/some-model")
    assert resolve_model(request, {}, download=download) == ResolvedModel(folder, "safetensors", "org/some-model")
    assert asked[0][0] == "org/some-model"
    assert "*.safetensors" in asked[0][1]
    resolve_model(ModelRequest("org/some-model", dummy_weights=True), {}, download=download)
    assert "*.safetensors" not in asked[1][1]


def test_an_existing_folder_wins_over_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert resolve(f"{folder.parent.name}/my-model").path == Path(folder.parent.name, "my-model")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.LocalEntryNotFoundError("three\nlong\nlines"), "cannot reach the hub for org/m"),
        (OSError("No space left\non device"), "cannot fetch org/m from the hub: No space left$"),
        (RuntimeError(), r"cannot fetch org/m from the hub: RuntimeError\(\)"),
    ],
)
def test_each_failure_of_the_hub_is_one_line(error: Exception, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **named: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=line):
        download_from_hub("org/m", [])
