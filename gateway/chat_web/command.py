"""The flags of headrace nanochat-web: all those of headrace serve, with the names and defaults of nanochat's script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.config import Option

# Over Config's defaults, and under whatever is given.
DEFAULTS: Mapping[str, Any] = {
    "model": "nanochat:",
    "replicas": 1,
    "host": "0.0.0.0",  # as there: every interface
    "cors_origin": "*",
    "limits": "nanochat",  # on the other paths too
    "web_page": True,  # as its page did
}

# By option: what nanochat calls it.
NAMES: Mapping[str, Sequence[str]] = {
    "replicas": ("--num-gpus", "-n"),
    "source": ("-i",),
    "model_tag": ("-g",),
    "step": ("-s",),
    "web_temperature": ("--temperature", "-t"),
    "web_top_k": ("--top-k", "-k"),
    "web_max_tokens": ("--max-tokens", "-m"),
    "port": ("-p",),
    "dtype": ("-d",),
    "device": ("--device-type",),
}


def theirs_first(known: Sequence[Option]) -> list[Option]:
    """As they are told by --help."""
    theirs = ("model", *NAMES, "host")
    first = sorted((option for option in known if option.name in theirs), key=lambda option: theirs.index(option.name))
    return [*first, *(option for option in known if option.name not in theirs)]


def shown_default(option: Option) -> str:
    return str(DEFAULTS.get(option.name, option.shown_default))
