"""Imports torch without what only its compiler needs: a third of the time that `import torch` takes."""

from __future__ import annotations

import os
import sys
from types import ModuleType

# Kernels in Python for tensors without memory, with the tables of decompositions that they draw in. torch imports them
# for their effect alone; what is done here with tensors on the device meta has kernels in C++.
UNUSED = "torch._meta_registrations"
ENVIRONMENT = {  # read while torch is imported
    # How long an OpenMP thread spins for its next loop before it sleeps. The default (milliseconds) takes cores from
    # the gateway; none at all costs a third of a decode step in wake-ups.
    "GOMP_SPINCOUNT": "10000",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # it looks through all installed packages for devices that we do not know
}


def import_torch() -> None:
    """Whoever imports the part that is left out gets it, once this has returned."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "torch" in sys.modules:
        return
    stand_in = sys.modules.setdefault(UNUSED, ModuleType(UNUSED))
    try:
        import torch
    finally:
        if sys.modules.get(UNUSED) is stand_in:
            del sys.modules[UNUSED]
    torch.__dict__.pop(UNUSED.rpartition(".")[2], None)
