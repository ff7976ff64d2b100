"""What Linux's control groups leave this process: limits of containers, of systemd's services, of batch systems. Groups
are in each other, and the narrowest counts. Both versions; nothing is limited where there are none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = ("max", "-1")


@dataclass(frozen=True, slots=True)
class Groups:
    """Those of this process, by the file that names them."""

    root: Path = ROOT
    own: Path = OWN

    def cores(self) -> float:
        """Processor time, in cores; infinite without a limit."""
        return min((_cores(folder) for folder in self._folders("cpu")), default=math.inf)

    def free_bytes(self) -> float:
        """Memory that may still be taken; infinite without a limit. What of files is only cached is free, as it is for
        the kubelet's working set: the kernel gives it up before it kills anybody."""
        return min((_free_bytes(folder) for folder in self._folders("memory")), default=math.inf)

    def _folders(self, controller: str) -> Iterator[Path]:
        """Of all groups around this process that can be seen. In a container, paths are often those of the machine
        outside, and only the root is there."""
        try:
            lines = self.own.read_text().splitlines()
        except OSError:
            lines = []
        paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
        for base, path in ((self.root, paths.get("", "/")), (self.root / controller, paths.get(controller, "/"))):
            yield base
            for part in Path(path).parts[1:]:
                base = base / part
                if not base.is_dir():
                    break
                yield base


def _cores(folder: Path) -> float:
    try:
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except FileNotFoundError:  # the first version
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota not in UNLIMITED else math.inf
    except (OSError, ValueError):
        return math.inf


def _free_bytes(folder: Path) -> float:
    try:
        first = not (folder / "memory.max").exists()
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
        allowed = (folder / limit).read_text().strip()
        if allowed in UNLIMITED:
            return math.inf
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cached = int(stat["total_inactive_file" if first else "inactive_file"])
        return max(0, int(allowed) - int((folder / used).read_text()) + cached)
    except (OSError, ValueError, KeyError):
        return math.inf
