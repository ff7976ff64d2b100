"""Kernels run compiled where there is a GPU and in Triton's interpreter elsewhere."""

import os

import pytest
import torch

from tests.engine.cuda.interpreter import hasten, repair

repair()
if not torch.cuda.is_available():
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("torch sees no GPU: set TRITON_INTERPRET=1 before anything imports triton")
    hasten()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
