"""How many engines there are, and which of the machine's devices each is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"


class NoSuchPlace(Exception):
    """There are not as many devices as were asked for. One line, for people."""


def places(replicas: int, width: int, device: str, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Of each engine, what its environment has beside ours. replicas: 0: as many as there are GPUs for, or else one.
    width: GPUs of an engine. gpus: the names of those that may be used. Raises NoSuchPlace."""
    on_gpus = device == "cuda" or (device == "auto" and len(gpus) > 0)
    count = replicas or (max(1, len(gpus) // width) if on_gpus else 1)
    if count == 1:
        return [{}]
    if device.startswith("cuda:"):
        raise NoSuchPlace(f"replicas: {count} engines cannot all be on {device}")
    if not on_gpus:
        return [{} for _ in range(count)]
    if count * width > len(gpus):
        raise NoSuchPlace(f"replicas: {count} engines need {count * width} GPUs, and {len(gpus)} can be seen")
    return [{VARIABLE: ",".join(gpus[first : first + width])} for first in range(0, count * width, width)]


def visible_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names as CUDA_VISIBLE_DEVICES has them; nothing is loaded to find out. None where torch would use none."""
    if metadata.version("torch").endswith("+cpu"):
        return []
    if (listed := environ.get(VARIABLE)) is not None:
        names = [name.strip() for name in listed.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))]
    found = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(number) for number in range(len(found))]
