"""How many threads an engine takes, no more than the cores that it may use, and how much memory it may still take."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cgroups import Groups
from engine.host import available_bytes, choose_host, usable_cores

CORES = len(os.sched_getaffinity(0))
GIB = 1 << 30


def groups(folder: Path, files: dict[str, str], own: str = "0::/\n") -> Groups:
    """files: text by path under /sys/fs/cgroup; own: /proc/self/cgroup."""
    root = folder / "cgroup"
    root.mkdir()
    (folder / "own").write_text(own)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return Groups(root, folder / "own")


def second(limit: object, used: int = 0, cached: int = 0, at: str = "") -> dict[str, str]:
    stat = f"anon 1\nfile 9\ninactive_file {cached}\nactive_file 9"
    return {f"{at}memory.max": str(limit), f"{at}memory.current": str(used), f"{at}memory.stat": stat}


def first(limit: object, used: int = 0, cached: int = 0, at: str = "memory/") -> dict[str, str]:
    files = {"limit_in_bytes": str(limit), "usage_in_bytes": str(used)}
    files["stat"] = f"inactive_file 7\ntotal_inactive_file {cached}"
    return {f"{at}memory.{name}": text for name, text in files.items()}


# cores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", CORES),
        ("100000 100000", 1),
        ("30000 100000", 1),  # a third of a core
        (f"{1000 * CORES}00 100000", CORES),
        ("9999900000 100000", CORES),
        ("what is this", CORES),
        ("", CORES),
    ],
)
def test_cores_of_a_container(text: str, expected: int, tmp_path: Path) -> None:
    assert usable_cores(groups(tmp_path, {"cpu.max": text})) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", CORES), ("100000", 1), ("150000", 1)])
def test_cores_of_a_container_in_the_first_version_of_cgroups(quota: str, expected: int, tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": "100000"}
    assert usable_cores(groups(tmp_path, files, "4:cpu,cpuacct:/docker/1f\n")) == expected


def test_the_narrowest_group_around_a_process_counts(tmp_path: Path) -> None:
    """A service of systemd, in a slice."""
    files = {
        "system.slice/cpu.max": "150000 100000",
        "system.slice/headrace.service/cpu.max": "350000 100000",
        "system.slice/other.service/cpu.max": "50000 100000",
    }
    assert groups(tmp_path, files, "0::/system.slice/headrace.service\n").cores() == 1.5


def test_without_cgroups(tmp_path: Path) -> None:
    nowhere = Groups(tmp_path / "none", tmp_path / "neither")
    assert usable_cores(nowhere) == CORES
    assert (nowhere.cores(), nowhere.free_bytes()) == (math.inf, math.inf)
    assert 0 < available_bytes(nowhere) < 1 << 50


def test_a_process_that_is_bound_to_one_core_takes_one_thread() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from engine.host import choose_host; print(choose_host('cpu', 'auto', 0).threads)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "1"


def test_what_is_asked_for_is_taken() -> None:
    assert choose_host("cpu", "auto", 3).threads == 3


# memory


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        (second("max"), "0::/\n", math.inf),
        (second(8 * GIB, 3 * GIB), "0::/\n", 5 * GIB),
        (second(8 * GIB, 8 * GIB, cached=6 * GIB), "0::/\n", 6 * GIB),  # a model's file that was read
        (second(8 * GIB, 9 * GIB), "0::/\n", 0),
        (second(8 * GIB) | {"memory.stat": "what is this"}, "0::/\n", math.inf),
        (first(8 * GIB, 7 * GIB, cached=2 * GIB), "4:memory:/docker/1f\n0::/\n", 3 * GIB),
        (first(9223372036854771712, GIB), "4:memory:/\n", 9223372036854771712 - GIB),  # what it says of no limit
    ],
)
def test_memory_of_a_container(files: dict[str, str], own: str, expected: float, tmp_path: Path) -> None:
    assert groups(tmp_path, files, own).free_bytes() == expected


@pytest.mark.parametrize("place", ["a.slice/", "a.slice/b.service/"])
def test_memory_of_a_service_in_a_slice(place: str, tmp_path: Path) -> None:
    files = second(8 * GIB, GIB, at="a.slice/") | second(8 * GIB, GIB, at="a.slice/b.service/")
    files |= second(4 * GIB, GIB, at=place)
    limited = groups(tmp_path, files, "0::/a.slice/b.service\n")
    assert limited.free_bytes() == 3 * GIB
    assert available_bytes(limited) <= 3 * GIB


def test_memory_of_a_job_in_the_first_version_of_cgroups(tmp_path: Path) -> None:
    files = first(9223372036854771712, GIB) | first(2 * GIB, GIB, at="memory/slurm/job/")
    assert groups(tmp_path, files, "4:memory:/slurm/job\n3:cpuset:/\n").free_bytes() == GIB
