"""What sampling may be set to. The server has the last word: here only what can never be right is refused."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

Number = int | float
NONE = "none"  # what a person writes for: as the server has it


class SettingError(Exception):
    """One line."""


@dataclass(frozen=True, slots=True)
class Setting:
    is_whole: bool
    least: Number
    most: Number
    meaning: str


SETTINGS: Mapping[str, Setting] = {
    "temperature": Setting(False, 0, 2, "0: always the likeliest token"),
    "top_k": Setting(True, 0, 1 << 30, "only the k likeliest tokens; 0: all"),
    "top_p": Setting(False, 0, 1, "only the likeliest tokens that have this probability together"),
    "min_p": Setting(False, 0, 1, "only tokens this likely beside the likeliest"),
    "max_tokens": Setting(True, 1, 1 << 30, "of an answer"),
    "seed": Setting(True, -(1 << 63), (1 << 63) - 1, "the same draws each time"),
    "repetition_penalty": Setting(False, 0, 2, "above 1: fewer repetitions"),
    "presence_penalty": Setting(False, -2, 2, "above 0: other tokens than before"),
    "frequency_penalty": Setting(False, -2, 2, "above 0: the more so, the more often"),
}


def parse(name: str, text: str) -> Number | None:
    """None: as the server has it. Raises SettingError."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1)
        told = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}"
        raise SettingError(f"no such setting: {name}; {told}")
    if text.lower() == NONE:
        return None
    whole = SETTINGS[name].is_whole
    try:
        return checked(name, int(text) if whole else float(text))
    except ValueError:
        raise SettingError(f"{name}: {'a whole number' if whole else 'a number'}, not {text!r}") from None


def checked(name: str, value: Number) -> Number:
    """Raises SettingError."""
    setting = SETTINGS[name]
    if not (math.isfinite(value) and setting.least <= value <= setting.most):
        raise SettingError(f"{name}: from {setting.least} to {setting.most}, not {value}")
    return value
