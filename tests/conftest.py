"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

from gateway.model.fetch import cache_folder, default_model_path

# Where there is no GPU, Triton's kernels run in its interpreter. It reads this when it is first imported, which
# transformers does as well: so before any test module. Asked of the driver: tests of the scheduler do without torch.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The real default model, fetched on the first run ever into the user's cache folder."""
    return default_model_path(cache_folder(os.environ), os.environ)
