"""What engines are started with, and what of it may be changed while the server runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec

from gateway.config import Config, ConfigError, Option, config_of, options
from gateway.engines.handles import EngineLauncher
from gateway.errors import ModelError
from gateway.model.digest import tokenizer_digest
from gateway.model.resolve import ResolvedModel
from gateway.rolling.types import Value

CHANGEABLE = (
    *("model", "source", "model_tag", "step", "dtype", "threads", "attention", "max_model_len", "max_seqs"),
    *("max_step_tokens", "mixed_prompt_tokens", "block_size", "kv_cache_memory", "gpu_memory_fraction"),
    "prefix_caching",
)


_TYPES = get_type_hints(Config, include_extras=True)
ReloadOptions = msgspec.defstruct(
    "ReloadOptions", [(name, _TYPES[name] | msgspec.UnsetType, msgspec.UNSET) for name in CHANGEABLE], kw_only=True
)
"""For the description of the API: all may be left out."""


class Unchangeable(Exception):
    """What was asked for cannot be. One line; param names the option, where it is one's."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class Settings:
    config: Config
    resolved: ResolvedModel

    def shown(self) -> dict[str, Value]:
        return {name: getattr(self.config, name) for name in CHANGEABLE}


@dataclass(frozen=True, slots=True)
class Wiring:
    """How the server makes engines of options."""

    resolve: Callable[[Config], ResolvedModel]  # blocks; raises ModelError
    launchers: Callable[[Settings], Sequence[EngineLauncher]]  # of each engine; raises ConfigError


def changeable() -> list[Option]:
    return [option for option in options() if option.name in CHANGEABLE]


def changed(config: Config, given: Mapping[str, Any]) -> Config:
    """Options that are not given stay as they are. Raises Unchangeable."""
    names = [option.name for option in options()]
    for name in given:
        if name in names and name not in CHANGEABLE:
            raise Unchangeable(f"{name} cannot be changed while the server runs.", name)
    try:
        parsed = config_of(given)
    except ConfigError as error:
        name = str(error).partition(":")[0]
        raise Unchangeable(f"{error}.", name if name in names else None) from error
    return msgspec.structs.replace(config, **{name: getattr(parsed, name) for name in given})


def settled(wiring: Wiring, config: Config, served: bytes) -> tuple[Settings, Sequence[EngineLauncher]]:
    """served: the digest of the tokenizer that requests are read with. Blocks. Raises Unchangeable."""
    try:
        resolved = wiring.resolve(config)
        if tokenizer_digest(resolved) != served:
            message = "has another tokenizer or chat template than the one that is served: that needs a new server."
            raise Unchangeable(f"{config.model} {message}", "model")
        settings = Settings(config, resolved)
        return settings, wiring.launchers(settings)
    except ModelError as error:
        raise Unchangeable(f"{error}.", "model") from error
    except ConfigError as error:
        raise Unchangeable(f"{error}.") from error
