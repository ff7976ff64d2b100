"""Where nanochat keeps its checkpoints, and which of them is meant where a request leaves something open.

base folder    NANOCHAT_BASE_DIR, else ~/.cache/nanochat
    tokenizer/tokenizer.pkl
    chatsft_checkpoints/d20/model_000650.pt, meta_000650.json, ...
    (source)            (tag)     (step)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.errors import ModelError

SCHEME = "nanochat:"
Source = Literal["base", "mid", "sft", "rl"]
FOLDERS: Mapping[str, str] = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
TOKENIZER = Path("tokenizer") / "tokenizer.pkl"
FILE = re.compile(r"model_(\d+)\.pt")
DEPTH = re.compile(r"d(\d+)")


@dataclass(frozen=True, slots=True)
class NanochatChoice:
    source: Source = "sft"
    tag: str = ""  # empty: the deepest, else the one that changed last
    step: int = 0  # 0: the last


@dataclass(frozen=True, slots=True)
class NanochatFiles:
    weights: Path  # model_<step>.pt; its meta_<step>.json stands beside it
    tokenizer: Path
    name: str  # what clients call it


def base_folder(environ: Mapping[str, str]) -> Path:
    chosen = environ.get("NANOCHAT_BASE_DIR")
    return Path(chosen).expanduser() if chosen else Path("~/.cache/nanochat").expanduser()


def is_checkpoint(path: Path) -> bool:
    """A folder of checkpoints, or one of their files."""
    if path.is_file():
        return FILE.fullmatch(path.name) is not None
    return path.is_dir() and not (path / "config.json").exists() and bool(_steps(path))


def find(choice: NanochatChoice, environ: Mapping[str, str]) -> NanochatFiles:
    """In the base folder. Raises ModelError."""
    base = base_folder(environ)
    source = base / FOLDERS[choice.source]
    if not source.is_dir():
        raise ModelError(f"no nanochat checkpoints of source {choice.source}: {source} is not there")
    folder = source / (choice.tag or _deepest(source))
    if not folder.is_dir():
        raise ModelError(
            f"no nanochat model {choice.tag!r} in {source}; there are {', '.join(_tags(source)) or 'none'}"
        )
    return _files(folder, choice.step, [base / TOKENIZER])


def find_at(path: Path, step: int, environ: Mapping[str, str]) -> NanochatFiles:
    """path: one for which is_checkpoint holds. Raises ModelError."""
    folder = path.resolve()
    if folder.is_file():
        step, folder = int(_number(folder.name)), folder.parent
    beside = [folder / TOKENIZER.name, folder / TOKENIZER, folder.parent.parent / TOKENIZER]
    return _files(folder, step, [*beside, base_folder(environ) / TOKENIZER])


def _files(folder: Path, step: int, tokenizers: list[Path]) -> NanochatFiles:
    steps = _steps(folder)
    if not steps or (step and step not in steps):
        told = ", ".join(map(str, sorted(steps))) or "none"
        raise ModelError(f"{folder} has no checkpoint of step {step or 'any'}; there are {told}")
    weights = steps[step or max(steps)]
    meta = weights.with_name(f"meta_{_number(weights.name)}.json")
    if not meta.is_file():
        raise ModelError(f"{folder} has no {meta.name} for {weights.name}")
    tokenizer = next((path for path in tokenizers if path.is_file()), None)
    if tokenizer is None:
        raise ModelError(f"no tokenizer for {weights}: looked for {', '.join(map(str, tokenizers))}")
    return NanochatFiles(weights, tokenizer, f"nanochat-{folder.name}")


def _steps(folder: Path) -> dict[int, Path]:
    return {int(_number(path.name)): path for path in folder.iterdir() if FILE.fullmatch(path.name)}


def _number(name: str) -> str:
    found = FILE.fullmatch(name)
    assert found is not None, name
    return found[1]


def _tags(source: Path) -> list[str]:
    return sorted(path.name for path in source.iterdir() if path.is_dir())


def _deepest(source: Path) -> str:
    tags = _tags(source)
    if not tags:
        raise ModelError(f"{source} holds no models")
    depths = [(int(found[1]), found[0] == tag, tag) for tag in tags if (found := DEPTH.match(tag))]
    if depths:
        return max(depths)[2]
    return max(tags, key=lambda tag: (source / tag).stat().st_mtime)
