"""One shape served over HTTP: the real gateway and engine, and client processes beside them on the same machine.

Output tokens over the time from the first request of any client to the last answer of all. The CPU of a process is its
processor time in that span over the span: 1.0 is a whole core. A client near 1.0 is the limit, not the server.
"""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import Load, Seen
from benchmarks.gpu_report import Report

ROOT = Path(__file__).resolve().parent.parent
MODEL = "bench"
READY_S = 240.0
STOP_S = 20.0
LEAD_S = 0.3  # from the last client's word that it is ready
TICKS = os.sysconf("SC_CLK_TCK")
SERIES = re.compile(
    r'^headrace_(step_seconds|batch_size)_(sum|count)\{(?:[^}]*kind="(\w+)")?[^}]*\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Level:
    clients: int
    concurrency: int  # of each client
    requests: int  # of each client
    gateways: int = 1

    @property
    def name(self) -> str:
        return f"{self.clients}x{self.concurrency}" + (f", {self.gateways} gateways" if self.gateways > 1 else "")


@dataclass(frozen=True, slots=True)
class HttpSizes:
    levels: tuple[Level, ...]
    num_in: int = 128
    num_out: int = 128


LEVELS = {
    "qwen06b": (
        *(Level(1, 64, 512), Level(1, 256, 1024), Level(4, 64, 256), Level(1, 1, 8)),
        *(Level(4, 64, 256, 4), Level(1, 256, 1024, 4)),
    ),
    "llama8b": (Level(1, 64, 256), Level(1, 256, 768), Level(1, 1, 4)),
    "tiny": (Level(1, 2, 6), Level(2, 2, 4), Level(2, 2, 4, 2)),
}


class ServerFailed(RuntimeError):
    """It ended, or did not become ready."""


@dataclass(frozen=True, slots=True)
class Served:
    pid: int
    port: int
    ready_s: float  # from the command to an answer of /ready


def environment(packages: Path | None = None) -> dict[str, str]:
    """The engine is started without the current folder on its path: names it. packages: a folder that shall know the
    version of the source tree, for where it is not installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if packages is not None:
        known = packages / "headrace-0.dist-info"
        known.mkdir(parents=True, exist_ok=True)
        (known / "METADATA").write_text("Metadata-Version: 2.1\nName: headrace\nVersion: 0\n")
        paths.append(str(packages))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def server(folder: Path, flags: list[str], log: Path) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gateway", "serve", "--model", str(folder), "--load-format", "dummy"]
    command += ["--port", str(port), "--served-model-name", MODEL, "--log-level", "warning", *flags]
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(folder / "site")
        )
        try:
            _wait_ready(process, port, log)
            yield Served(process.pid, port, time.perf_counter() - began)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"it ended with code {process.returncode}: ...{log.read_text()[-1500:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise ServerFailed(f"not ready within {READY_S:g} s: ...{log.read_text()[-1500:]}")


def measure(folder: Path, sizes: HttpSizes, flags: list[str], report: Report) -> None:
    for gateways in sorted({level.gateways for level in sizes.levels}):
        _measure(folder, sizes, gateways, flags, report)


def _measure(folder: Path, sizes: HttpSizes, gateways: int, flags: list[str], report: Report) -> None:
    """The levels with so many gateways, in one server."""
    log = folder / "server.log"
    levels = [(index, level) for index, level in enumerate(sizes.levels) if level.gateways == gateways]
    tag = f", {gateways} gateways" if gateways > 1 else ""
    try:
        with server(folder, [*flags, "--gateways", str(gateways)], log) as served:
            report.put(f"ready_s{tag}", round(served.ready_s, 2))
            told = {"gateways": gateways, "flags": flags, "prompts": "token ids", "stream": "each token"}
            report.put(f"processes{tag}", told)
            most = max(level.clients * level.concurrency for _, level in levels)
            report.attempt(f"warm-up{tag}", lambda: _level(served, Level(1, most, most), 16, 16, seed=1))
            for index, level in levels:
                seed = 100_000 * (index + 1)
                report.attempt(
                    level.name,
                    lambda level=level, seed=seed: _level(served, level, sizes.num_in, sizes.num_out, seed),
                    10,
                )
    finally:
        text = log.read_text(errors="replace")
        print("  the server said:\n" + "".join(f"    {line}\n" for line in text.splitlines()[-40:]), flush=True)


def _level(served: Served, level: Level, num_in: int, num_out: int, seed: int) -> dict[str, Any]:
    loads = [
        Load(served.port, MODEL, level.concurrency, level.requests, num_in, num_out, seed + number)
        for number in range(level.clients)
    ]
    before, cpu_before = _steps(served.port), _cpu(served.pid)
    seen = run_clients(loads)
    cpu_after, after = _cpu(served.pid), _steps(served.port)
    wall = max(each.ended_at for each in seen) - min(each.began_at for each in seen)
    tokens = sum(each.output_tokens for each in seen)
    ttft, itl = (sorted(x for each in seen for x in getattr(each, name)) for name in ("ttft_s", "itl_s"))
    requests = sum(each.requests for each in seen)
    return {
        "clients": level.clients,
        "gateways": level.gateways,
        "concurrency": level.clients * level.concurrency,
        "requests": requests,
        "tok_s": round(tokens / wall, 1),
        "wall_s": round(wall, 3),
        "cached_tokens": sum(each.cached_tokens for each in seen),
        "ttft_ms": _quantiles(ttft),
        "itl_ms": _quantiles(itl),
        "tokens_per_read": round(tokens / max(1, len(itl) + len(ttft)), 2),
        "events": sum(each.events for each in seen),
        "client_cpu": [round(each.cpu_s / wall, 2) for each in seen],
        "server_cpu": {name: round((cpu_after[name] - cpu_before.get(name, 0.0)) / wall, 2) for name in cpu_after},
        "engine": {name: round(after[name] - before.get(name, 0.0), 3) for name in after},
    }


def run_clients(loads: list[Load]) -> list[Seen]:
    """Each in a process of its own, all from the same moment on."""
    command = [sys.executable, "-m", "benchmarks.client"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    clients = [subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) for _ in loads]  # type: ignore[call-overload]
    try:
        for client, load in zip(clients, loads, strict=True):
            client.stdin.write(json.dumps(asdict(load)) + "\n")
            client.stdin.flush()
        for client in clients:
            if client.stdout.readline() != "ready\n":
                raise ServerFailed("a client could not begin")
        start_at = time.monotonic() + LEAD_S
        for client in clients:
            client.stdin.write(f"{start_at}\n")
            client.stdin.flush()
        told = [client.stdout.readline() for client in clients]
        if not all(told):
            raise ServerFailed("a client failed; its error is above")
        return [Seen(**json.loads(line)) for line in told]
    finally:
        for client in clients:
            client.kill()
            client.communicate()


def _quantiles(ordered: list[float]) -> dict[str, float]:
    if not ordered:
        return {}
    ranks = {"p50": 0.5, "p99": 0.99}
    found = {name: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for name, q in ranks.items()}
    return {name: round(value * 1e3, 2) for name, value in {**found, "mean": statistics.fmean(ordered)}.items()}


def _steps(port: int) -> dict[str, float]:
    """Of the engine's steps so far, by kind: how many, and their seconds; and the rows of all."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = SERIES.findall(text)
    return {" ".join(filter(None, (name, kind, what))): float(value) for name, what, kind, value in found}


def _cpu(pid: int) -> dict[str, float]:
    """Processor seconds of a process and of its children so far."""
    found = {"gateway": _process_cpu(pid)}
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    for child in sorted(children):
        kind = "gateway" if _is_gateway(child) else "engine"
        number = sum(name.startswith(kind) for name in found)
        found[f"{kind}{number + 1}" if number else kind] = _process_cpu(child)
    return found


def _is_gateway(pid: int) -> bool:
    try:
        return b"gateway.siblings" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []  # a thread that has ended, or a kernel that does not tell


def _process_cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS
