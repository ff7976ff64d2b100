"""Real weights on the device: SmolLM2-135M, float32 and bfloat16, against what float32 on the CPU says to 50 prompts.

    python -m benchmarks.gpu_real --prepare [MODEL.gguf]     makes benchmarks/data/smollm2_greedy.json, on a CPU
    python -m benchmarks.gpu_real --split MODEL.gguf         makes .model/part0 and .model/part1, to be carried apart

Where a token differs, the CPU's margin there, between the logarithms of its two likeliest tokens, says if it could: in
float32 sums come out differently by some 1e-5, in bfloat16 by some tenths.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import agreement
from benchmarks.gpu_engine import Job, LocalEngine, WrongAnswer, engine_config
from benchmarks.gpu_report import Report
from scheduler.types import SamplingParams

DATA = Path(__file__).parent / "data" / "smollm2_greedy.json"
PARTS = Path(".model")
NUM_PROMPTS = 50
NUM_OUT = 48
CLOSE = {"float32": 1e-3, "bfloat16": 0.5}  # margins under these explain another token
OPENINGS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "The three laws of thermodynamics say that",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8,",
    "In 1969, the first people",
    "A recipe for bread needs",
    "The mitochondrion is",
)
CLOSINGS = (
    "",
    " Let me explain this step by step.",
    " On the other hand, many people believe that",
    "\n\nQuestion: What is it?\nAnswer:",
    " It was late in the evening when the old teacher closed the book, looked out of the window and thought about",
)


def prompts(path: Path) -> list[list[int]]:
    from gateway.model.load import load_served_model

    tokenizer = load_served_model(path, "m", 0).tokenizer
    return [tokenizer.encode(opening + closing) for closing in CLOSINGS for opening in OPENINGS]


def gguf_config(path: Path, device: str, overrides: dict[str, str], **values: Any) -> Any:
    settings = {"format": "gguf", "max_seqs": 64, "max_model_len": 1024, "kv_cache_bytes": 1 << 30} | values
    return engine_config(path, device, overrides, **settings)


def prepare(path: Path) -> None:
    """Greedy tokens in float32, and the margin before each."""
    asked = prompts(path)
    engine = LocalEngine(gguf_config(path, "cpu", {}, dtype="float32"))
    params = SamplingParams(max_tokens=NUM_OUT, temperature=0.0, logprobs=2)
    answers = engine.run([Job(prompt, params) for prompt in asked]).answers
    rows = [
        {
            "prompt": prompt,
            "tokens": answer.tokens,
            "margins": [round(told.top_logprobs[0] - told.top_logprobs[1], 4) for told in answer.logprobs],
        }
        for prompt, answer in zip(asked, answers, strict=True)
    ]
    DATA.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    DATA.write_text(f'{{"model":"{path.name}","dtype":"float32","rows":[\n{lines}\n]}}\n')


def split(path: Path) -> None:
    data = path.read_bytes()
    PARTS.mkdir(exist_ok=True)
    middle = len(data) // 2
    (PARTS / "part0").write_bytes(data[:middle])
    (PARTS / "part1").write_bytes(data[middle:])


def joined(folder: Path, target: Path) -> Path:
    """The model from its parts."""
    parts = sorted(folder.glob("part*"))
    if len(parts) < 2:
        raise FileNotFoundError(f"{folder} holds {len(parts)} of the model's 2 parts")
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def measure(path: Path, device: str, overrides: dict[str, str], report: Report, num_rows: int) -> None:
    rows = json.loads(DATA.read_text())["rows"][:num_rows]
    for dtype in ("float32", "bfloat16"):
        report.attempt(dtype, lambda dtype=dtype: _agree(path, device, overrides, dtype, rows), 15)


def _agree(
    path: Path, device: str, overrides: dict[str, str], dtype: str, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    engine = LocalEngine(gguf_config(path, device, overrides, dtype=dtype))
    params = SamplingParams(max_tokens=NUM_OUT, temperature=0.0)
    jobs = [Job(row["prompt"], params) for row in rows]
    try:
        found = agreement(engine, jobs, [row["tokens"] for row in rows])
    except WrongAnswer:
        engine.close()
        raise
    margins = sorted((rows[index]["margins"][at] for index, at in found.pop("places")), reverse=True)
    engine.close()
    unexplained = [margin for margin in margins if margin >= CLOSE[dtype]]
    return found | {
        "start_s": round(engine.start_s, 2),
        "unexplained": len(unexplained),
        "largest_margins": margins[:5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="MODEL")
    parser.add_argument("--split", type=Path, metavar="MODEL")
    args = parser.parse_args()
    if args.prepare:
        prepare(args.prepare)
    if args.split:
        split(args.split)


if __name__ == "__main__":
    main()
