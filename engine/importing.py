"""Imports torch, on a CPU without what only its compiler needs: a third of the time that `import torch` takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

# Kernels in Python for tensors without memory, with the tables of decompositions that they draw in. torch imports them
# for their effect alone; what is done here with tensors on the device meta has kernels in C++. Who traces or compiles
# afterwards must import this first.
UNUSED = "torch._meta_registrations"
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")  # the latter in Windows' Linux
ENVIRONMENT = {  # read while torch is imported
    # How long an OpenMP thread spins for its next loop before it sleeps. The default (milliseconds) takes cores from
    # the gateway; none at all costs a third of a decode step in wake-ups.
    "GOMP_SPINCOUNT": "10000",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # it looks through all installed packages for devices that we do not know
}


def import_torch(device: str) -> None:
    """device: as configured. Whole for GPUs, where other packages' kernels may ask for all of it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "torch" in sys.modules or not is_cpu(device):
        return
    stand_in = sys.modules[UNUSED] = ModuleType(UNUSED)
    try:
        import torch
    finally:
        if sys.modules.get(UNUSED) is stand_in:
            del sys.modules[UNUSED]
    torch.__dict__.pop(UNUSED.rpartition(".")[2], None)


def is_cpu(device: str) -> bool:
    """As far as that can be told without torch."""
    return device == "cpu" or (device == "auto" and not any(Path(name).exists() for name in GPU_FILES))
