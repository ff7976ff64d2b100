"""Fixtures of all tests, and how files run side by side (Makefile)."""

import fcntl
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from gateway.model.fetch import cache_folder, default_model_path

# Where there is no GPU, Triton's kernels run in its interpreter. It reads this when it is first imported, which
# transformers does as well: so before any test module. Asked of the driver: tests of the scheduler do without torch.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

FOLDER = Path(__file__).parent
# The files that take longest: they come first, so that no worker is left with one of them at the end.
LONGEST = (
    "engine/cuda/test_attention.py",
    "engine/test_greedy.py",
    "engine/cuda/test_prefill.py",
    "e2e/test_migration.py",
    "engine/cuda/test_runner.py",
    "e2e/test_offline.py",
    "engine/cuda/test_flash.py",
    "browser/test_chat_page.py",
    "engine/cuda/test_filters.py",
    "engine/test_families.py",
    "e2e/test_prometheus.py",
    "engine/cuda/test_sampling.py",
    "e2e/test_gateways.py",
    "e2e/test_timelines.py",
    "e2e/test_tensor_parallel.py",
    "gateway/test_fuzz.py",
)


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    assert all((FOLDER / name).exists() for name in LONGEST), "a file has gone, or has another name now"
    if is_worker(config):
        places = {FOLDER / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Nothing else runs beside a test that is marked `alone`. Every test goes through a gate, so that those which may
    share do not keep out one that waits for all of them to end."""
    if not is_worker(item.config):
        return (yield)
    folder = item.config.cache.mkdir("side-by-side")
    with (folder / "tests").open("w") as tests, (folder / "gate").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(tests, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(tests, fcntl.LOCK_UN)  # also where a process that the test has forked still has the file open


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The real default model, fetched on the first run ever into the user's cache folder."""
    return default_model_path(cache_folder(os.environ), os.environ)
