"""What this machine is: its memory, its processor's abilities, the device and data type to use on it."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine.cgroups import Groups
from engine.errors import ModelRefused
from engine.parallel.messages import Seat

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # processor flags of native bfloat16 products, x86 and Arm
OLDEST_CAPABILITY = (8, 0)  # Ampere: bfloat16, and copies past registers
GROUPS = Groups()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Host:
    """Where the engine runs, decided once at start."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    description: str
    runs_triton: bool = False  # the kernels of engine/cuda can be compiled for it


def choose_host(device: str, dtype: str, threads: int, sharers: int = 1) -> Host:
    """Resolves "auto" and 0. sharers: engines of which each has its part of the cores. Raises ModelRefused for a device
    that is not there."""
    chosen = _device(device)
    cores = usable_cores()
    num_threads = threads or max(1, (cores - 1 if cores > 2 else cores) // sharers)
    if dtype != "auto":
        kind = DTYPES[dtype]
    elif chosen.type == "cpu":
        kind = torch.bfloat16 if cpu_flags() & BF16_FLAGS else torch.float32
    else:
        kind = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    return Host(chosen, kind, num_threads, _describe(chosen, num_threads), _runs_triton(chosen))


def seated(host: Host, seat: Seat) -> Host:
    """A rank's own: its GPU, the first rank's being the one that was chosen, or its share of the threads."""
    kind, size = host.device.type, seat.num_ranks
    if size == 1:
        return host
    if kind == "cpu":
        threads = max(host.threads // size, 1)
        return replace(host, threads=threads, description=f"{size} processes of {_describe(host.device, threads)}")
    first, there = host.device.index or 0, torch.cuda.device_count()
    if kind != "cuda":
        raise ModelRefused(f"--tp {size} needs Nvidia GPUs, or processes on a CPU; the device is {kind}")
    if first + size > there:
        raise ModelRefused(f"--tp {size} needs {size} GPUs from cuda:{first} on; torch sees {there} in all")
    device = torch.device("cuda", first + seat.rank)
    description = f"{size} GPUs from {_describe(torch.device('cuda', first), host.threads)} on"
    return replace(host, device=device, description=description, runs_triton=_runs_triton(device))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelRefused(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelRefused(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelRefused("device 'mps' is not there")
    return device


def _runs_triton(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def _describe(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    plural = "s" * (threads != 1)
    return f"{device} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{plural})"


def cpu_flags() -> set[str]:
    """The processor's feature flags as Linux lists them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def usable_cores(groups: Groups = GROUPS) -> int:
    """Cores that this process may run on (taskset, cpusets), at most as many as its share of processor time is worth
    (limits of containers). With a thread more than that, threads that wait for each other hold each other up."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    return max(1, int(min(cores, groups.cores())))


def available_bytes(groups: Groups = GROUPS) -> int:
    """Memory that this process may still take: what the system calls available, less where control groups limit it."""
    return int(min(_system_available(), groups.free_bytes()))


def _system_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
