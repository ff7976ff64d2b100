"""How many threads an engine takes: no more than the cores that it may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.host import choose_host, usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("cpu.max", "max 100000", CORES),
        ("cpu.max", "100000 100000", 1),
        ("cpu.max", "30000 100000", 1),  # a third of a core
        ("cpu.max", f"{1000 * CORES}00 100000", CORES),
        ("cpu.max", "9999900000 100000", CORES),
        ("cpu.max", "what is this", CORES),
        ("cpu.max", "", CORES),
    ],
)
def test_cores_of_a_container(file: str, text: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text + "\n")
    assert usable_cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", CORES), ("100000", 1), ("150000", 1)])
def test_cores_of_a_container_in_the_first_version_of_cgroups(quota: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == expected


def test_without_cgroups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == CORES


def test_a_process_that_is_bound_to_one_core_takes_one_thread() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from engine.host import choose_host; print(choose_host('cpu', 'auto', 0).threads)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "1"


def test_what_is_asked_for_is_taken() -> None:
    assert choose_host("cpu", "auto", 3).threads == 3
