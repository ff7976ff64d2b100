"""What tensor parallelism gains on two GPUs: decode steps of one GPU and of two in the same run, with the same weights.

    python -m benchmarks.tensor_parallel --out FILE [--seconds 225] [--tp 2] [--parts sums,checks:1:qwen3,...]
                                         [--tiny --device cpu]      to try the benchmark itself

Parts: `sums` compares ways to sum over ranks (benchmarks/tensor_parallel_sums.py); `checks` gives the tokens of small
float32 models, which have to be those of one GPU; `decode` gives milliseconds a step of Llama 3.1 8B's shape, random
weights, bfloat16. Each part is a process of its own with its ranks below it. One that is late is told to print the
stacks of all its processes, then killed. A table for people, the last line JSON for machines; needs no network.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gpu_models import CONFIGS, fixed, model_folder
from benchmarks.gpu_report import Report

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 2, 4, 8, 32)
PROMPT, STEPS, SKIPPED = 128, 160, 16  # tokens; steps of each batch, of which the first are not counted
PART_S = 100.0
LAST_WORDS_S = 5.0  # for stacks
SMALL: dict[str, dict[str, Any]] = {
    "qwen3": CONFIGS["tiny"],  # tied
    "llama": {  # untied, with biases, and a head of keys and values that all ranks have
        **CONFIGS["tiny"],
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "vocab_size": 12_287,
        "tie_word_embeddings": False,
    },
}


def run_part(part: str, args: argparse.Namespace, report: Report) -> None:
    name, number, *shapes = [*part.split(":"), ""]
    if name == "sums":
        from benchmarks import tensor_parallel_sums

        tensor_parallel_sums.measure(args.root / "sums", args.tp, report.put)
    elif name == "checks":
        for shape in filter(None, shapes):  # a process has one group in its life
            report.put(shape, checks(SMALL[shape], int(number), args))
    elif name == "decode":
        decode(int(number), args, report)
    else:
        raise SystemExit(f"there is no part {part!r}")


def checks(config: dict[str, Any], tp: int, args: argparse.Namespace) -> list[list[int]]:
    """Tokens of every job."""
    from benchmarks.gpu_engine import LocalEngine, engine_config

    folder = model_folder(config, Path(tempfile.mkdtemp(dir=args.root)))
    values: dict[str, Any] = {"dtype": "float32", "tp": tp, "socket_path": str(folder / "s"), "max_seqs": 16}
    values |= {"max_step_tokens": 256, "max_model_len": 1024, "kv_cache_bytes": 64 << 20, "threads": 2}
    engine = LocalEngine(engine_config(folder, args.device, {}, **values))
    try:
        found = [answer.tokens for answer in engine.run(_jobs()).answers]
        again = [answer.tokens for answer in engine.run(_jobs()).answers]  # with hits in the prefix cache
    finally:
        engine.close()
    return found + again


def _jobs() -> list[Any]:
    from benchmarks.gpu_engine import Job
    from scheduler.types import SamplingParams

    rng = random.Random(5)
    plain = SamplingParams(max_tokens=48, temperature=0.0)
    warm = {"temperature": 1.0}
    changes: list[dict[str, Any]] = [{}, warm, {"logprobs": 2}, {"repetition": 1.3}, {**warm, "logprobs": 1}]
    changes += [{**warm, "top_p": 0.8}, {**warm, "prompt_logprobs": 1}, {**warm, "logit_bias": ((7, 2.0),)}]
    lengths = (5, 40, 300, 17, 129, 64, 90, 1)
    prompts = [[rng.randrange(10_000) for _ in range(length)] for length in lengths]
    params = [msgspec.structs.replace(plain, seed=seed, **change) for seed, change in enumerate(changes)]
    return [Job(*job) for job in zip(prompts, params, strict=True)]


def decode(tp: int, args: argparse.Namespace, report: Report) -> None:
    from benchmarks.gpu_engine import LocalEngine, engine_config, greedy

    shape = "tiny" if args.tiny else "llama8b"
    batches = BATCHES[:2] if args.tiny else BATCHES
    folder = model_folder(CONFIGS[shape], args.root / f"decode-{tp}")
    values: dict[str, Any] = {"tp": tp, "socket_path": str(folder / "s"), "max_seqs": max(batches), "threads": 2}
    values |= {"max_step_tokens": 1024, "max_model_len": 4096, "kv_cache_bytes": (1 << 26 if args.tiny else 4 << 30)}
    engine = LocalEngine(engine_config(folder, args.device, {}, **values))
    report.put("engine", engine.told())
    try:
        for batch in batches:
            work = fixed(batch, PROMPT, STEPS, seed=batch)
            run = engine.run(greedy(work.prompts, work.out))
            steps = [step.record for step in run.steps if step.record.kind == "decode"][SKIPPED:-SKIPPED]
            milliseconds = [step.seconds * 1e3 for step in steps if step.num_tokens == batch]
            found = {"median": round(statistics.median(milliseconds), 4), "steps": len(milliseconds)}
            spent = {"launch": run.launch_s, "finish": run.finish_s}
            host = {f"{name}_ms": round(seconds * 1e3 / len(run.steps), 3) for name, seconds in spent.items()}
            report.put(f"batch {batch}", {**found, **host, "tokens": run.answers[0].tokens[:24]})
        if not args.tiny:
            report.attempt("kernels of a step", lambda: _kernels(engine, greedy([work.prompts[0]], [48])), 10)
    finally:
        engine.close()


def _kernels(engine: Any, jobs: list[Any]) -> dict[str, Any]:
    """Microseconds and calls a step of the batch of one, on rank 0."""
    from torch.profiler import ProfilerActivity, profile

    engine.run(jobs)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run = engine.run(jobs)
    steps = len(run.steps)
    rows = sorted(seen.key_averages(), key=lambda row: -row.device_time_total)[:16]
    return {row.key[:60]: [round(row.device_time_total / steps, 1), round(row.count / steps, 1)] for row in rows}


# --- all parts ---


def main() -> int:
    args = _arguments()
    if args.part:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        run_part(args.part, args, Report(args.report, args.deadline))
        sys.stdout.flush()
        os._exit(0)  # not by way of communicators whose peers are gone
    began = time.monotonic()
    found: dict[str, Any] = {"about": _about(args)}
    print(json.dumps(found["about"]), flush=True)
    with tempfile.TemporaryDirectory(prefix="headrace-") as root:
        for part in args.parts:
            left = args.seconds - (time.monotonic() - began)
            print(f"--- {part}, {left:.0f} s left", flush=True)
            found[part] = _child(part, args, Path(root), min(left, PART_S)) if left > 10 else {"error": "not begun"}
            args.out.write_text(json.dumps(found, indent=1))
    found["equal"] = _equal(found, args.tp)
    found["ratios"] = _ratios(found, args.tp)
    found["about"]["seconds"] = round(time.monotonic() - began, 1)
    args.out.write_text(json.dumps(found, indent=1))
    print(_table(found, args.tp))
    print(json.dumps({"equal": found["equal"], "ratios": found["ratios"]}))
    return 0


def _child(part: str, args: argparse.Namespace, root: Path, seconds: float) -> dict[str, Any]:
    report = root / f"{part.replace(':', '-')}.json"
    command = [sys.executable, "-m", "benchmarks.tensor_parallel", "--part", part, "--report", str(report)]
    command += ["--root", str(root), "--tp", str(args.tp), "--device", args.device]
    command += ["--deadline", str(time.monotonic() + seconds)] + (["--tiny"] if args.tiny else [])
    began = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, env=_environment(), start_new_session=True)
    try:
        code = child.wait(seconds)
        error = f"ended with code {code}" if code else None
    except subprocess.TimeoutExpired:
        error = "ran out of time"
        _signal(child.pid, signal.SIGABRT)  # Python then prints the stacks of all its threads
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(LAST_WORDS_S)
    _signal(child.pid, signal.SIGKILL)  # and whatever is left of it
    child.wait()
    values: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    values["part_s"] = round(time.monotonic() - began, 1)
    return values | ({"error": error} if error else {})


def _signal(group: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, which)


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # NVLink's multicast stays off, as engine/__main__.py has it.
    ours = {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", "NCCL_NVLS_ENABLE": "0"}
    return {**os.environ, **ours, "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _equal(found: dict[str, Any], tp: int) -> dict[str, str]:
    """How many of the jobs of each small model have the same tokens, and where the first others differ."""
    told = {}
    for shape in SMALL:
        one, many = found.get(f"checks:1:{shape}", {}), found.get(f"checks:{tp}:{shape}", {})
        if shape not in one or shape not in many:
            told[shape] = "not known"
            continue
        pairs = list(zip(one[shape], many[shape], strict=True))
        others = [(job, _first_difference(a, b)) for job, (a, b) in enumerate(pairs) if a != b]
        told[shape] = f"{len(pairs) - len(others)} of {len(pairs)}" + (f"; (job, place): {others}" if others else "")
    return told


def _first_difference(one: Iterable[int], other: Iterable[int]) -> int:
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), -1)


def _ratios(found: dict[str, Any], tp: int) -> dict[str, float]:
    one, many = found.get("decode:1", {}), found.get(f"decode:{tp}", {})
    names = [name for name in one if name.startswith("batch") and name in many]
    return {name: round(one[name]["median"] / many[name]["median"], 3) for name in names}


def _table(found: dict[str, Any], tp: int) -> str:
    lines = [f"tokens equal those of one: {found['equal']}", f"{'':10}  tp=1 ms  tp={tp} ms  ratio"]
    for name, ratio in found["ratios"].items():
        one, many = found["decode:1"][name]["median"], found[f"decode:{tp}"][name]["median"]
        lines.append(f"{name:10}  {one:7.3f}  {many:7.3f}  {ratio:5.2f}")
    errors = {part: values["error"] for part, values in found.items() if isinstance(values, dict) and "error" in values}
    return "\n".join([*lines, *(f"{part}: {error}" for part, error in errors.items())])


def _about(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    on_cuda = torch.cuda.is_available() and args.device.startswith("cuda")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if on_cuda:
        import triton

        versions |= {"triton": triton.__version__, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(0) if on_cuda else "cpu",
        "num_devices": torch.cuda.device_count(),
        "versions": versions,
        "cores": os.cpu_count(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tensor-parallel.json"))
    parser.add_argument("--seconds", type=float, default=225.0, help="for all parts together")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the benchmark itself")
    for internal in ("--part", "--report", "--root", "--deadline"):
        kind = {"--deadline": float, "--part": str}.get(internal, Path)
        parser.add_argument(internal, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.parts is None:
        checks = [f"checks:{tp}:{shape}" for shape in SMALL for tp in (1, args.tp)]
        args.parts = ["sums", *checks[:2], f"decode:{args.tp}", "decode:1", *checks[2:]]
    return args


if __name__ == "__main__":
    sys.exit(main())
