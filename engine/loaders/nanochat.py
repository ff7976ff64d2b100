"""A nanochat checkpoint: model_<step>.pt, a dictionary of tensors, and meta_<step>.json beside it.

torch's unpickler reads the first with weights_only, which makes tensors and nothing else, and maps the file: what is
not copied to its place costs no memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ModelRefused
from engine.loaders.checkpoint import Report, check_names
from engine.loaders.safetensors import read_json
from engine.models.nanochat_spec import NanochatSpec, spec_from_meta

FILE = re.compile(r"model_(\d+)\.pt")
COMPILED = "_orig_mod."  # torch.compile's prefix, which some checkpoints were saved with
PADDED = re.compile(r"transformer\.wte\.weight|lm_head\.weight|value_embeds\.\d+\.weight")  # to a multiple of 64 rows
OWN_LAMBDAS = ("resid_lambdas", "x0_lambdas")


class NanochatCheckpoint:
    rope_factors: Tensor | None = None

    def __init__(self, path: Path) -> None:
        """path: of model_<step>.pt"""
        found = FILE.fullmatch(path.name)
        if found is None:
            raise ModelRefused(f"{path.name} is not named as a nanochat checkpoint is: model_<step>.pt")
        config = read_json(path.with_name(f"meta_{found[1]}.json")).get("model_config")
        if not isinstance(config, dict):
            raise ModelRefused(f"meta_{found[1]}.json has no model_config")
        tensors = _read(path)
        self._add_missing_lambdas(tensors)
        self.spec: NanochatSpec = spec_from_meta(config, {name: tensor.shape for name, tensor in tensors.items()})
        self._tensors = {name: self._without_padding(name, tensor) for name, tensor in tensors.items()}

    def _add_missing_lambdas(self, tensors: dict[str, Tensor]) -> None:
        """Where one kind of them is there, the other may be left out: then it changes nothing."""
        there = [name for name in OWN_LAMBDAS if name in tensors]
        if len(there) == 1:
            like = tensors[there[0]]
            is_resid = there[0] == "x0_lambdas"
            tensors["resid_lambdas" if is_resid else "x0_lambdas"] = torch.full_like(like, float(is_resid))

    def _without_padding(self, name: str, tensor: Tensor) -> Tensor:
        return tensor[: self.spec.vocab_size] if PADDED.fullmatch(name) else tensor

    def read_into(self, table: Mapping[str, Tensor], report: Report) -> None:
        """Raises ModelRefused for a tensor that is missing, unknown or wrongly shaped."""
        check_names(table, {name: tensor.shape for name, tensor in self._tensors.items()}, lambda name: False)
        done, total = 0, sum(tensor.nbytes for tensor in self._tensors.values())
        for name, tensor in self._tensors.items():
            table[name].copy_(tensor)
            done += tensor.nbytes
            report(done, total)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        read = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise ModelRefused(f"{path.parent} has no {path.name}") from None
    except Exception as error:  # whatever a broken archive or a forbidden pickle makes it raise
        raise ModelRefused(f"{path.name} cannot be read: {_first_line(error)}") from None
    if not isinstance(read, dict) or not all(isinstance(tensor, Tensor) for tensor in read.values()):
        raise ModelRefused(f"{path.name} does not hold a dictionary of tensors")
    return {str(name).removeprefix(COMPILED): tensor for name, tensor in read.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
