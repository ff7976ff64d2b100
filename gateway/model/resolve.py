"""What --model means: the default by name, a .gguf file, a folder, a checkpoint of nanochat or rosellm, or a name on
the hub. Gives paths on this disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from gateway.errors import ModelError
from gateway.model import nanochat
from gateway.model.fetch import DEFAULT_MODEL, Report, cache_folder, default_model_path, silent
from gateway.model.nanochat import NanochatChoice, NanochatFiles

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TEXT_FILES = (
    *("config.json", "generation_config.json", "tokenizer*.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt"),
)
HUB_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
HUB_TOKENIZER = re.compile(r"([\w.-]+/)?[\w.-]+")  # some of the oldest, such as gpt2, have no owner
ROSELLM_SUFFIXES = (".pt", ".pth", ".ckpt")  # of what torch.save wrote
SHARD_INDEX = "model.safetensors.index.json"

Download = Callable[[str, list[str]], str]
"""(hub name, file patterns) -> folder. Raises ModelError."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    path: Path  # a file or a folder
    format: Literal["gguf", "safetensors", "dummy", "rosellm", "nanochat"]
    name: str  # what clients call it
    tokenizer: Path | None = None  # a folder, or nanochat's pickle; None: the model's own


@dataclass(frozen=True, slots=True)
class ModelRequest:
    model: str
    served_name: str = ""  # empty: taken from the model
    dummy_weights: bool = False  # a folder then needs no *.safetensors
    tokenizer: str = ""  # a folder or a name on the hub; empty: the model's own
    nanochat: NanochatChoice = field(default_factory=NanochatChoice)


def resolve_model(
    request: ModelRequest, environ: Mapping[str, str], report: Report = silent, download: Download | None = None
) -> ResolvedModel:
    """Fetches what is not on this disk yet. Blocks. Raises ModelError in one line."""
    try:
        resolved = _model(request, environ, report, download)
        if request.tokenizer:
            return replace(resolved, tokenizer=_tokenizer(request.tokenizer, download))
    except OSError as error:  # a folder that this user may not look into, a name that is too long, a full disk
        where = error.filename if error.filename is not None else request.model
        raise ModelError(f"{where}: {error.strerror or error}") from error
    if resolved.format == "rosellm":
        raise ModelError(f"{resolved.path} holds weights only; --tokenizer says which tokenizer they were trained with")
    return resolved


def _model(
    request: ModelRequest, environ: Mapping[str, str], report: Report, download: Download | None
) -> ResolvedModel:
    model, path = request.model, _expanded(request.model)
    is_default = model.casefold() == DEFAULT_MODEL.name.casefold()
    if model == nanochat.SCHEME:
        return _nanochat(request, nanochat.find(request.nanochat, environ))
    if request.nanochat.tag:
        raise ModelError(f"--model-tag goes with --model {nanochat.SCHEME}, not with {model}")
    if not is_default and nanochat.is_checkpoint(path):
        return _nanochat(request, nanochat.find_at(path, request.nanochat.step, environ))
    if request.nanochat.step:
        raise ModelError(f"--step goes with nanochat's checkpoints, and {model} is none")
    if is_default:
        return _resolved(request, default_model_path(cache_folder(environ), environ, report), DEFAULT_MODEL.name)
    if path.exists():
        return _resolved(request, path, path.resolve().stem if path.is_file() else path.resolve().name)
    if HUB_NAME.fullmatch(model) and path.suffix.lower() != ".gguf":
        patterns = [*HUB_TEXT_FILES] + ([] if request.dummy_weights else [*HUB_WEIGHT_FILES])
        return _resolved(request, Path((download or download_from_hub)(model, patterns)), model)
    raise ModelError(
        f"no model {model!r}: neither the name {DEFAULT_MODEL.name}, nor a file or folder here, nor org/name on the hub"
    )


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # of a user that there is not
        raise ModelError(f"{name}: {error}") from None


def _nanochat(request: ModelRequest, files: NanochatFiles) -> ResolvedModel:
    if request.dummy_weights:
        raise ModelError("--load-format dummy is not for nanochat's checkpoints")
    return ResolvedModel(files.weights, "nanochat", request.served_name or files.name, files.tokenizer)


def _resolved(request: ModelRequest, path: Path, own_name: str) -> ResolvedModel:
    name = request.served_name or own_name
    if path.is_dir():
        _check_folder(path, needs_weights=not request.dummy_weights)
        return ResolvedModel(path, "dummy" if request.dummy_weights else "safetensors", name)
    if request.dummy_weights:
        raise ModelError(f"--load-format dummy needs a folder with config.json, and {path} is a file")
    if path.suffix.lower() in ROSELLM_SUFFIXES:
        return ResolvedModel(path, "rosellm", name)
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"{path} is neither a .gguf file nor a folder nor a rosellm checkpoint (.pt)")
    return ResolvedModel(path, "gguf", name)


def _tokenizer(name: str, download: Download | None) -> Path:
    path = _expanded(name)
    if not path.exists() and HUB_TOKENIZER.fullmatch(name):
        path = Path((download or download_from_hub)(name, [*HUB_TEXT_FILES]))
    if not path.is_dir():
        raise ModelError(f"no tokenizer {name!r}: neither a folder here nor a name on the hub")
    _check_tokenizer(path)
    return path


def _check_folder(path: Path, *, needs_weights: bool) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} has no config.json")
    _check_tokenizer(path)
    if not needs_weights:
        return
    missing = sorted(name for name in _shards(path) if not (path / name).is_file())
    if missing:
        raise ModelError(f"{path} lacks {missing[0]}, which its {SHARD_INDEX} names")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{path} has no *.safetensors")


def _check_tokenizer(path: Path) -> None:
    """tokenizer.json, or what GPT-2 had before it."""
    older = ("vocab.json", "merges.txt")
    if not (path / "tokenizer.json").is_file() and not all((path / name).is_file() for name in older):
        raise ModelError(f"{path} has no tokenizer.json")


def _shards(path: Path) -> set[str]:
    index = path / SHARD_INDEX
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of weights: {error!r}") from error


def download_from_hub(name: str, patterns: list[str]) -> str:
    """Through huggingface-hub, with its cache, token and progress bars; without network what its cache holds."""
    from huggingface_hub import errors, snapshot_download

    try:
        return str(snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise ModelError(f"{name} on the hub asks for its terms to be accepted and for a token (HF_TOKEN)") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"no model {name!r}: no such file or folder here, and the hub has none you may read"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(f"cannot reach the hub for {name}, and its files are not all in the hub's cache") from error
    except Exception as error:  # whatever its HTTP library raises: proxies, certificates, full disks
        raise ModelError(f"cannot fetch {name} from the hub: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
