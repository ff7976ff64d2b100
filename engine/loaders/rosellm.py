"""Checkpoints that rosellm's trainers write: torch.save of a dictionary with config and model, which is a GPT-2.

Nothing in the file is executed: torch reads tensors and plain values only. What training needs beside them, such as the
optimiser's state, is mapped and never touched.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelRefused
from engine.loaders.checkpoint import Report, check_names
from engine.models import gpt2
from engine.models.gpt2 import GELUS, Gpt2Spec

TOP_NAMES = {
    "token_embedding.weight": "wte.weight",
    "position_embedding.weight": "wpe.weight",
    "ln_f.weight": "ln_f.weight",
    "ln_f.bias": "ln_f.bias",
    "lm_head.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "ln1": "ln_1",
    "attn.qkv_proj": "attn.c_attn",
    "attn.out_proj": "attn.c_proj",
    "ln2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
EMBED, HEAD = "token_embedding.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Config:
    """What of rosellm's GPTConfig changes the numbers, with its defaults: its first checkpoints had no config."""

    vocab_size: int = 32_000
    max_position_embeddings: int = 1024
    n_layers: int = 12
    n_heads: int = 12
    d_model: int = 768
    d_ff: int = 3072
    activation: str = "gelu"
    use_tensor_parallel: bool = False


class RosellmCheckpoint:
    rope_factors: Tensor | None = None

    def __init__(self, path: Path) -> None:
        self._file = path.name
        content = _read(path)
        self._tensors = _tensors(content.get("model"), self._file)
        self._config = _config(content.get("config"), self._file)
        self.spec = _spec(self._config, tied=self._is_tied())

    def read_into(self, table: Mapping[str, Tensor], report: Report) -> None:
        tensors = {hf_name(name): tensor for name, tensor in self._tensors.items()}
        self._check(table, tensors)
        done, total = 0, sum(view.numel() for view in table.values())
        for name, view in table.items():
            view.copy_(tensors[name])
            done += view.numel()
            report(done, total)

    def _check(self, table: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        if self._config.use_tensor_parallel and tensors["wte.weight"].shape == table["wte.weight"].shape:
            name = "h.0.attn.c_attn.weight"
            if name in tensors and tensors[name].shape != table[name].shape:
                raise ModelRefused(
                    f"{self._file} holds one rank's part of a tensor-parallel model; only whole models are supported"
                )
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        check_names(table, shapes, lambda name: name == HEAD or name.endswith(".attn.mask"))

    def _is_tied(self) -> bool:
        """One stored tensor under two names; before rosellm tied its head, there were two."""
        if EMBED not in self._tensors:
            raise ModelRefused(f"the checkpoint lacks 1 tensor: {EMBED}")
        head = self._tensors.get(HEAD)
        return head is None or head.data_ptr() == self._tensors[EMBED].data_ptr()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelRefused(f"{path.name} cannot be read as a checkpoint of torch.save: {reason}") from None
    if not isinstance(content, dict):
        raise ModelRefused(f"{path.name} holds no dictionary, so it is no checkpoint of rosellm")
    return content


def _tensors(model: Any, file: str) -> dict[str, Tensor]:
    """By rosellm's names, without what wrappers put in front of them."""
    if not isinstance(model, dict) or not all(isinstance(tensor, Tensor) for tensor in model.values()):
        raise ModelRefused(f"{file} has no 'model' of tensors, so it is no checkpoint of rosellm")
    return {str(name).removeprefix("_orig_mod.").removeprefix("module."): tensor for name, tensor in model.items()}


def _config(given: Any, file: str) -> Config:
    """Raises ModelRefused for values of other types than the default's."""
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ModelRefused(f"{file}: its 'config' is no dictionary")
    known = {field.name: given[field.name] for field in fields(Config) if field.name in given}
    for name, value in known.items():
        default = getattr(Config(), name)
        if type(value) is not type(default) or (type(value) is int and value < 1):
            raise ModelRefused(f"{file}: {name} of its config is {value!r}")
    return Config(**known)


def _spec(config: Config, *, tied: bool) -> Gpt2Spec:
    return gpt2.checked(
        Gpt2Spec(
            architecture="rosellm GPTModel",
            num_layers=config.n_layers,
            hidden=config.d_model,
            num_heads=config.n_heads,
            ffn=config.d_ff,
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
            gelu=GELUS["gelu_new" if config.activation == "gelu_new" else "gelu"],  # as there: all else is gelu
            tied=tied,
        )
    )


def hf_name(name: str) -> str:
    """The Hugging Face name of a tensor of rosellm; unknown names come back as they are."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[2] in LAYER_NAMES:
        return f"h.{parts[1]}.{LAYER_NAMES[parts[2]]}.{kind}"
    return name
