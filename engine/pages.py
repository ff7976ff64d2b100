"""Memory that costs nothing until it is first written, in pages of 2 MiB where the system has them: what is read in
every step lies in many places, and looking up the places of small pages takes time."""

from __future__ import annotations

import contextlib
import errno
import mmap

import numpy as np
from numpy.typing import NDArray


def zero_pages(num_bytes: int) -> NDArray[np.uint8]:
    """Raises MemoryError where the system promises no more (ulimit -v, strict overcommit)."""
    try:
        pages = mmap.mmap(-1, max(num_bytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        message = f"the system gives no {num_bytes >> 20} MiB of memory; lower --kv-cache-memory or --max-step-tokens"
        raise MemoryError(message) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # of a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)[:num_bytes]
