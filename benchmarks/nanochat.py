"""nanochat's models on a device: whether every generation answers as nanochat does, and how fast the newest is.

    python -m benchmarks.nanochat [--device cuda] [--dtype auto] [--depth 20] [--streams 1,8,64]

The first part is the checkpoints of the tests in float32. The second has random weights in the shapes that nanochat
trains at a depth: 128 tokens in, 128 out, each stream its own prompt; tokens out over the wall time with
the prompts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_engine import LocalEngine, engine_config, greedy
from tests.fixtures import nanochat

CONTEXT, VOCAB, HEAD_DIM = 2048, 32_768, 128
TOKENS_IN, TOKENS_OUT = 128, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--streams", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"equal": equal(Path(folder), args.device), "speed": speed(Path(folder), args)}
    for era, told in found["equal"].items():
        print(f"{era:10} {told}")
    for streams, rate in found["speed"]["tokens_per_s"].items():
        print(f"d{args.depth}, {streams:3} streams  {rate:8.1f} tokens/s")
    print(json.dumps(found))


def equal(folder: Path, device: str) -> dict[str, str]:
    """Of each era, how many of nanochat's own greedy answers came out."""
    told = {}
    for name, era in nanochat.ERAS.items():
        file = nanochat.save(folder / name, era)
        engine = LocalEngine(engine_config(file, device, {}, format="nanochat", dtype="float32"))
        jobs = greedy(nanochat.PROMPTS, [nanochat.NEW_TOKENS] * len(nanochat.PROMPTS))
        answers = [answer.tokens for answer in engine.run(jobs).answers]
        engine.close()
        theirs = nanochat.stored_ids(name)
        told[name] = f"{sum(map(list.__eq__, answers, theirs))} of {len(theirs)} answers are nanochat's"
    return told


def speed(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    file = save_random(folder, args.depth)
    engine = LocalEngine(engine_config(file, args.device, {}, format="nanochat", dtype=args.dtype))
    rates = {}
    for at, streams in enumerate([max(args.streams), *args.streams]):  # the first warms up
        prompts = [
            torch.randint(VOCAB, (TOKENS_IN,), generator=torch.Generator().manual_seed(1000 * at + stream)).tolist()
            for stream in range(streams)
        ]
        run = engine.run(greedy(prompts, [TOKENS_OUT] * streams))
        rates[streams] = round(streams * TOKENS_OUT / run.wall_s, 1)
    told = engine.told()
    engine.close()
    return {"engine": told, "tokens_per_s": {streams: rates[streams] for streams in args.streams}}


def save_random(folder: Path, depth: int) -> Path:
    """As nanochat's base_train sizes a model: 64 channels a layer, heads of 128."""
    hidden = 64 * depth
    heads = max(1, hidden // HEAD_DIM)
    sizes = {"sequence_len": CONTEXT, "vocab_size": VOCAB, "n_layer": depth, "n_head": heads, "n_kv_head": heads}
    file = folder / "model_000001.pt"
    torch.save(random_tensors(depth, hidden, heads), file)
    meta = {"model_config": {**sizes, "n_embd": hidden, "window_pattern": "SSSL"}}
    file.with_name("meta_000001.json").write_text(json.dumps(meta))
    return file


def random_tensors(depth: int, hidden: int, heads: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.5).bfloat16()

    tensors = {"transformer.wte.weight": made(VOCAB, hidden), "lm_head.weight": made(VOCAB, hidden)}
    for layer in range(depth):
        block = f"transformer.h.{layer}"
        tensors |= {f"{block}.attn.c_{part}.weight": made(hidden, hidden) for part in ("q", "k", "v", "proj")}
        tensors |= {
            f"{block}.mlp.c_fc.weight": made(4 * hidden, hidden),
            f"{block}.mlp.c_proj.weight": made(hidden, 4 * hidden),
        }
        if layer % 2 == (depth - 1) % 2:
            tensors |= {
                f"{block}.attn.ve_gate.weight": made(heads, 12),
                f"value_embeds.{layer}.weight": made(VOCAB, hidden),
            }
    one = torch.ones(1)
    lambdas = {"resid_lambdas": torch.ones(depth), "x0_lambdas": 0.1 * torch.ones(depth)}
    return tensors | lambdas | {"smear_gate.weight": made(1, 24), "smear_lambda": one, "backout_lambda": 0.2 * one}


if __name__ == "__main__":
    main()
