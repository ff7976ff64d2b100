"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

from gateway.model.fetch import cache_folder, default_model_path


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The real default model, fetched on the first run ever into the user's cache folder."""
    return default_model_path(cache_folder(os.environ), os.environ)
