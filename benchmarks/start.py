"""How long it takes from the command to the line that says the server is ready, and what happens when.

    python -m benchmarks.start                                    seven starts
    python -m benchmarks.start --beside ../other --rounds 9       in turn with another checkout's
    python -m benchmarks.start --flag=--dtype=float32             how each is started
    python -m benchmarks.start --output benchmarks/results/x.json kept

Machines that others use too are slower at some hours than at others: only starts in turn compare, and each round tells
how long `import torch` alone takes, and each start what its processes have used. The first start of each checkout is
not counted: it reads files from the disk and compiles modules. Prints tables for people and one last line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu_machine import commit, machine
from benchmarks.cpu_servers import ROOT, StartFailed, free_port, stop

READY = re.compile(r"headrace \S+ is ready")
BEGINS = re.compile(r"(.+?)( \(\S+ \w+\))? \.\.\.")  # a phase, as it is announced
LIMIT_S = 120.0
TORCH = "import time; began = time.perf_counter(); import torch; print(time.perf_counter() - began)"


@dataclass(frozen=True, slots=True)
class Start:
    round: int  # 0: not counted
    tree: str
    ready_s: float
    cpu_s: float  # that its processes have used by then
    phases_s: dict[str, float]  # when each began


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--beside", type=Path, action="append", default=[], help="another checkout, with its own name")
    parser.add_argument("--flag", action="append", default=[], help="for the server, such as --flag=--dtype=float32")
    parser.add_argument("--output", type=Path, help="keep the JSON here too")
    return parser.parse_args(argv)


def start(tree: Path, flags: Sequence[str], turn: int) -> Start:
    """Raises StartFailed."""
    command = [sys.executable, "-m", "gateway", "serve", *flags, "--port", str(free_port())]
    environ = {**os.environ, "PYTHONPATH": str(tree)}
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a process group of its own
    )
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    said: list[str] = []
    phases: dict[str, float] = {}
    try:
        assert process.stdout
        for raw in process.stdout:
            at, line = time.perf_counter() - began, raw.decode(errors="replace").rstrip()
            if READY.fullmatch(line):
                return Start(turn, tree.name, round(at, 3), round(cpu_s(process.pid), 3), phases)
            if found := BEGINS.fullmatch(line):
                phases.setdefault(found[1], round(at, 3))
            said.append(line)
        raise StartFailed("\n".join(["the server ended before it was ready", *said]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        stop(process)


def cpu_s(group: int) -> float:
    """Of the process that leads a group and of those that it started. 0 where there is no /proc."""
    ticks = 0
    parents: dict[int, tuple[int, int]] = {}  # (parent, ticks) by process
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    for process, (parent, used) in parents.items():
        if group in (process, parent):
            ticks += used
    return ticks / os.sysconf("SC_CLK_TCK")


def torch_s(environ: dict[str, str]) -> float:
    run = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, check=True, env=environ)
    return round(float(run.stdout), 3)


def measure(trees: Sequence[Path], flags: Sequence[str], rounds: int) -> tuple[list[Start], list[float]]:
    """Starts, and `import torch` of each round."""
    starts: list[Start] = []
    torch: list[float] = []
    for turn in range(rounds + 1):
        if turn:
            torch.append(torch_s(dict(os.environ)))
        first = turn % len(trees)
        for tree in [*trees[first:], *trees[:first]]:
            starts.append(found := start(tree, flags, turn))
            print(f"round {turn}  {tree.name:<12} {found.ready_s:6.2f} s", flush=True)
    return [each for each in starts if each.round], torch


def table(starts: Sequence[Start]) -> str:
    rows = []
    for tree in dict.fromkeys(each.tree for each in starts):
        own = [each for each in starts if each.tree == tree]
        times = sorted(each.ready_s for each in own)
        used = statistics.median(each.cpu_s for each in own)
        spread = f"{times[0]:.2f} to {times[-1]:.2f}"
        rows.append(f"{tree}: ready after {statistics.median(times):.2f} s ({spread}), {used:.2f} s of processors")
        for phase in dict.fromkeys(phase for each in own for phase in each.phases_s):
            at = statistics.median(each.phases_s[phase] for each in own if phase in each.phases_s)
            rows.append(f"    {at:6.2f}  {phase}")
    return "\n".join(rows)


def ratios(starts: Sequence[Start], base: str) -> dict[str, float]:
    """Of each other tree's starts over those of `base`, the median over rounds."""
    by_round = {(each.round, each.tree): each.ready_s for each in starts}
    others = [tree for tree in dict.fromkeys(each.tree for each in starts) if tree != base]
    rounds = sorted({each.round for each in starts})
    return {
        other: round(statistics.median(by_round[turn, other] / by_round[turn, base] for turn in rounds), 3)
        for other in others
    }


def main(argv: Sequence[str]) -> None:
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    args = arguments(argv)
    trees = [ROOT, *(path.resolve() for path in args.beside)]
    starts, torch = measure(trees, args.flag, args.rounds)
    told: dict[str, Any] = {
        "benchmark": "start",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "commits": {tree.name: commit(tree) for tree in trees},
        "flags": args.flag,
        "import_torch_s": torch,
        "ratios": ratios(starts, ROOT.name),
        "starts": [asdict(each) for each in starts],
    }
    for other, ratio in told["ratios"].items():
        print(f"{other} takes {ratio:.2f} times as long as {ROOT.name}")
    print(f"\nimport torch alone: {statistics.median(torch):.2f} s ({min(torch):.2f} to {max(torch):.2f})")
    print(table(starts))
    if args.output:
        args.output.write_text(json.dumps(told) + "\n")
    print(json.dumps(told))


def _too_long(signum: int, frame: object) -> None:
    raise StartFailed(f"not ready within {LIMIT_S:g} s")


if __name__ == "__main__":
    main(sys.argv[1:])
