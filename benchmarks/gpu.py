"""What the engine does on one GPU: correctness, the card's ceilings, and every workload beside the figures of vLLM 0.26
on the same kind of card (benchmarks/gpu_table.py). One call, within its minutes; a table for people, JSON for machines.

    python -m benchmarks.gpu --out DIR [--seconds 470] [--parts ceilings,checks,offline:llama8b,...]
                             [--tiny --device cpu]      to try the benchmark itself
                             [--set NAME=VALUE ...]     settings of the engine, as EngineConfig names them

Each part is a process of its own: one that fails or hangs costs the others nothing. Needs torch with CUDA, triton, and
what the gateway needs; no network. The part `real` needs the default model, in one piece or as benchmarks/gpu_real.py
cuts it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_models import CONFIGS, model_folder
from benchmarks.gpu_report import Report
from benchmarks.gpu_table import table

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ("qwen06b", "llama8b")
PARTS = (
    "ceilings",
    "checks",
    "real",
    *(f"offline:{shape}" for shape in SHAPES),
    *(f"http:{shape}" for shape in SHAPES),
)
ROWS = (1, 32, 64, 128, 256, 512)
GRACE_S = 5.0  # after its deadline, until a part is killed


@dataclass(frozen=True, slots=True)
class Call:
    """What a part is told."""

    device: str
    tiny: bool
    profile: bool
    overrides: dict[str, str]
    model: Path | None  # the default model's file, or the folder of its parts
    root: Path  # for model folders

    def folder(self, shape: str) -> Path:
        return model_folder(CONFIGS[shape], self.root / shape)


def run_part(part: str, call: Call, report: Report) -> None:
    name, _, shape = part.partition(":")
    if name == "ceilings":
        import torch

        from benchmarks import gpu_ceilings

        folders = {shape: call.folder(shape) for shape in (("tiny",) if call.tiny else SHAPES)}
        rows = ROWS[:2] if call.tiny else ROWS
        gpu_ceilings.measure(folders, torch.device(call.device), rows, call.tiny, report)
    elif name == "checks":
        from benchmarks import gpu_checks

        cases = gpu_checks.CASES[:1] if call.tiny else gpu_checks.CASES
        gpu_checks.measure(call.root, call.device, call.overrides, report, cases)
    elif name == "real":
        from benchmarks import gpu_real

        if call.model is None:
            raise SystemExit("--model is not given")
        path = call.model if call.model.is_file() else gpu_real.joined(call.model, call.root / "default.gguf")
        gpu_real.measure(path, call.device, call.overrides, report, 3 if call.tiny else gpu_real.NUM_PROMPTS)
    elif name == "offline":
        from benchmarks import gpu_offline
        from benchmarks.gpu_engine import LocalEngine, engine_config

        sizes = gpu_offline.OFFLINE_TINY if call.tiny else gpu_offline.OFFLINE
        engine = LocalEngine(engine_config(call.folder(shape), call.device, call.overrides))
        gpu_offline.measure(engine, sizes, report, call.profile)
    elif name == "http":
        from benchmarks import gpu_http

        sizes_http = gpu_http.HttpSizes(gpu_http.LEVELS[shape], *((8, 8) if call.tiny else ()))
        flags = ["--device", call.device]
        for key, value in call.overrides.items():
            flags += [f"--{key.replace('_', '-')}", value]
        gpu_http.measure(call.folder(shape), sizes_http, flags, report)
    else:
        raise SystemExit(f"there is no part {part!r}")


def main() -> int:
    args = _arguments()
    overrides = dict(pair.split("=", 1) for pair in args.set)
    if args.part:
        call = Call(args.device, args.tiny, args.profile, overrides, args.model, args.root)
        run_part(args.part, call, Report(args.report, args.deadline))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    deadline = began + args.seconds
    found: dict[str, Any] = {"about": _about(args)}
    with tempfile.TemporaryDirectory() as root:
        for part in args.parts:
            print(f"--- {part}, {deadline - time.monotonic():.0f} s left", flush=True)
            found[part] = _child(part, args, Path(root), deadline)
            (args.out / "gpu.json").write_text(json.dumps(found, indent=1))
    found["about"]["seconds"] = round(time.monotonic() - began, 1)
    (args.out / "gpu.json").write_text(json.dumps(found, indent=1))
    print(table(found))
    print(json.dumps({part: "error" in values for part, values in found.items() if part != "about"}))
    return 0


def _child(part: str, args: argparse.Namespace, root: Path, deadline: float) -> dict[str, Any]:
    report = args.out / f"{part.replace(':', '-')}.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--report", str(report), "--root", str(root)]
    command += ["--deadline", str(deadline), "--device", args.device]
    command += [flag for flag, wanted in (("--tiny", args.tiny), ("--profile", args.profile)) if wanted]
    command += [word for pair in args.set for word in ("--set", pair)]
    command += ["--model", str(args.model)] if args.model else []
    began = time.monotonic()
    error = None
    try:
        left = max(1.0, deadline - began + GRACE_S)
        code = subprocess.run(command, cwd=ROOT, env=_environment(), timeout=left).returncode
        error = f"ended with code {code}" if code else None
    except subprocess.TimeoutExpired:
        error = "ran out of time"
    values: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    report.unlink(missing_ok=True)
    values["part_s"] = round(time.monotonic() - began, 1)
    return values | ({"error": error} if error else {})


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _about(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    on_cuda = torch.cuda.is_available() and args.device.startswith("cuda")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if on_cuda:
        import triton

        versions["triton"] = triton.__version__
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(0) if on_cuda else "cpu",
        "versions": versions,
        "cores": os.cpu_count(),
        "command": "python -m benchmarks.gpu " + " ".join(word for word in sys.argv[1:] if "/" not in word),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--seconds", type=float, default=470.0, help="for all parts together")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=[*PARTS])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=Path, help="the default model: a file, or the folder of its parts")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the benchmark itself")
    parser.add_argument("--profile", action="store_true", help="also list kernels")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    for internal in ("--part", "--report", "--root", "--deadline"):
        kind = {"--deadline": float, "--part": str}.get(internal, Path)
        parser.add_argument(internal, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
