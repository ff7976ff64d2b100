"""The engine alone, without a gateway: how fast it is, and how good its answers are by the kind of weights.

    python -m benchmarks.cpu_engine speed [--streams 1,8,32]      tok/s offline, to compare with what is served
    python -m benchmarks.cpu_engine quality [--windows 24]        perplexity, equal next tokens

Both for the default model, or MODEL.gguf with --model. The text is the Python reference as pydoc has it, which comes
with every Python. Perplexity: over windows of 512 tokens, of all but the first of each. Equal: positions where the
likeliest next token, given the text so far, is that of float32. One last line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import random
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gpu_engine import Job, LocalEngine, Run
from gateway.model.load import load_served_model
from scheduler.protocol import EngineConfig
from scheduler.types import SamplingParams

DTYPES = ("float32", "bfloat16", "auto")
WINDOW = 512
INPUT_LEN, OUTPUT_LEN, REQUESTS_A_STREAM = 128, 128, 3
DEFAULT_MODEL = Path("~/.cache/headrace/models/SmolLM2-135M-Instruct.Q4_1.gguf")


def engine(model: Path, **settings: Any) -> LocalEngine:
    whole = {"model": str(model), "format": "gguf", "socket_path": "", "device": "cpu"} | settings
    return LocalEngine(msgspec.convert(whole, EngineConfig, strict=False))


def speed(model: Path, streams: list[int], **settings: Any) -> dict[str, Any]:
    """Three requests a stream, of which `streams` run at a time. The second of two runs counts."""
    found: dict[str, Any] = {}
    rng = random.Random(0)
    for number in streams:
        local = engine(model, max_seqs=number, **settings)
        for _ in range(2):
            prompts = [
                [rng.randrange(1000, 40_000) for _ in range(INPUT_LEN)] for _ in range(number * REQUESTS_A_STREAM)
            ]
            params = SamplingParams(max_tokens=OUTPUT_LEN, temperature=0.0)
            run = local.run([Job(prompt, params) for prompt in prompts])
        found[str(number)] = {"tok_s": round(OUTPUT_LEN * len(prompts) / run.wall_s, 1), **told(run)}
        print(f"{number} streams: {found[str(number)]}", flush=True)
        local.close()
    return found


def told(run: Run) -> dict[str, Any]:
    decodes = sorted(step.record.seconds for step in run.steps if step.record.kind == "decode")
    return {"decode_step_ms_p50": round(decodes[len(decodes) // 2] * 1e3, 2), "wall_s": round(run.wall_s, 2)}


def quality(model: Path, windows: int) -> dict[str, Any]:
    tokenizer = load_served_model(model, "default", 0).tokenizer
    text = "".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    ids = tokenizer.encode(text[: windows * WINDOW * 6])[: windows * WINDOW]
    prompts = [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)]
    jobs = [Job(prompt, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)) for prompt in prompts]
    likeliest: dict[str, list[int]] = {}
    found: dict[str, Any] = {"text": "pydoc topics", "tokens": sum(len(prompt) - 1 for prompt in prompts)}
    for dtype in DTYPES:
        local = engine(model, dtype=dtype)
        told = [each for answer in local.run(jobs).answers for each in (answer.prompt and answer.prompt.logprobs) or []]
        likeliest[dtype] = [each.top_ids[0] for each in told]
        perplexity = math.exp(-sum(each.logprob for each in told) / len(told))
        pairs = zip(likeliest[dtype], likeliest["float32"], strict=True)
        found[dtype] = {
            "weights": local.ready.dtype,
            "perplexity": round(perplexity, 4),
            "equal": round(sum(ours == theirs for ours, theirs in pairs) / len(told), 4),
        }
        print(f"{dtype}: {found[dtype]}", flush=True)
        local.close()
    base = found["float32"]["perplexity"]
    for dtype in DTYPES:
        found[dtype]["of_float32"] = round(found[dtype]["perplexity"] / base, 5)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "quality"))
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--streams", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--windows", type=int, default=24)
    args = parser.parse_args()
    model = args.model.expanduser()
    found = speed(model, args.streams) if args.what == "speed" else quality(model, args.windows)
    print(json.dumps({args.what: found}))


if __name__ == "__main__":
    main()
