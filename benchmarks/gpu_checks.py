"""Whether the device computes what the CPU does: small random models, all ways of sampling, float32, token by token.

A sequence that differs is looked at where it first does: the CPU's scores of the two tokens, noise included. Scores
closer than CLOSE are the sums of float32 in another order; anything else is a fault.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.gpu_engine import Answer, Job, LocalEngine, engine_config
from benchmarks.gpu_models import LLAMA3_ROPE, model_folder, spelled_bytes
from benchmarks.gpu_report import Report
from engine import noise
from scheduler.types import SamplingParams

VOCAB = 2048
CLOSE = 1e-4
SYNC_STEPS = 50
LENGTHS = (1, 2, 3, 7, 15, 16, 17, 31, 33, 48, 64, 100, 127, 128, 129, 200, 255, 300)
GRAMMAR = "start: /( [a-z]+){3,12}/"
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": VOCAB - 1,
}

Scenarios = dict[str, list[list[Job]]]  # waves of jobs, one after another


@dataclass(frozen=True, slots=True)
class Case:
    """A small model and the engine that runs it."""

    name: str
    config: dict[str, Any]
    scenarios: tuple[str, ...]
    engine: dict[str, Any] = field(default_factory=dict)


EVERY = ("greedy", "seeded", "prefix", "filters", "penalties", "logprobs", "grammar", "mixed", "aborts", "crowd")
CASES = (
    Case(
        "qwen3",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
        EVERY,
    ),
    Case(
        "qwen3 tight",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
        ("preemption",),
        {"kv_cache_bytes": 50 * 16 * 3 * 2 * 2 * 128 * 4, "max_model_len": 512},
    ),
    Case(
        "llama",
        {
            "architectures": ["LlamaForCausalLM"],
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "rope_theta": 5e5,
            "rope_scaling": LLAMA3_ROPE | {"original_max_position_embeddings": 256},
            "tie_word_embeddings": False,
        },
        ("greedy", "seeded", "prefix", "mixed"),
        {"block_size": 32},
    ),
    Case(
        "mistral",
        {
            "architectures": ["MistralForCausalLM"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 96,
            "rope_theta": 1e4,
            "sliding_window": 40,
            "tie_word_embeddings": False,
        },
        ("greedy", "seeded", "prefix"),
        {"block_size": 64},
    ),
)


def measure(root: Path, device: str, overrides: dict[str, str], report: Report, cases: tuple[Case, ...]) -> None:
    for case in cases:
        report.attempt(case.name, lambda case=case: _case(case, root, device, overrides), 10)
    report.attempt("bfloat16", lambda: _bfloat16(CASES[0], root, device, overrides), 10)
    if device.startswith("cuda"):
        report.attempt("syncs", lambda: _syncs(CASES[0], root, device, overrides), 5)


def _engines(case: Case, root: Path, device: str, overrides: dict[str, str]) -> tuple[LocalEngine, LocalEngine]:
    """The CPU's and the device's."""
    shared = _settings(case) | {"dtype": "float32"}
    folder = _folder(case, root)
    words = spelled_bytes(VOCAB)
    other = {} if device.startswith("cuda") else {"attention": "sdpa"}  # on a CPU, at least another kernel
    here = LocalEngine(engine_config(folder, "cpu", {}, **shared), words)
    there = LocalEngine(engine_config(folder, device, overrides, **shared | other), words)
    return here, there


def _folder(case: Case, root: Path) -> Path:
    return model_folder(SMALL | case.config, root / f"check-{case.name.replace(' ', '-')}")


def _settings(case: Case) -> dict[str, Any]:
    return {"max_seqs": 40, "max_step_tokens": 160, "kv_cache_bytes": 96 << 20} | case.engine


def _case(case: Case, root: Path, device: str, overrides: dict[str, str]) -> dict[str, Any]:
    cpu, other = _engines(case, root, device, overrides)
    scenarios = make_scenarios()
    found: dict[str, Any] = {"start_s": round(other.start_s, 2)}
    for name in case.scenarios:
        found[name] = _compare(cpu, other, scenarios[name])
    stats = other.scheduler.stats()
    found |= {"preemptions": stats.preemptions, "prefix_hits": stats.prefix_hits}
    if "preemption" in case.scenarios and not stats.preemptions:
        found["faults"] = "no sequence was preempted"
    cpu.close()
    other.close()
    return found


def _compare(cpu: LocalEngine, other: LocalEngine, waves: list[list[Job]]) -> dict[str, Any]:
    tokens = faults = close = 0
    differ, worst = [], 0.0
    for wave in waves:
        told = zip(wave, cpu.run(wave).answers, other.run(wave).answers, strict=True)
        for index, (job, here, there) in enumerate(told):
            if job.leave_after:
                continue  # how far it got is a matter of time
            tokens += len(here.tokens)
            worst = max(worst, _logprob_distance(here, there))
            if here.tokens == there.tokens and here.finish == there.finish:
                continue
            gap = _gap(cpu, job, here, there)
            is_close = gap is not None and gap < CLOSE
            close, faults = close + is_close, faults + (not is_close)
            differ.append({"sequence": index, "at": _common(here.tokens, there.tokens), "gap": gap})
    told_of = {"tokens": tokens, "close": close, "faults": faults, "differ": differ[:4]}
    return told_of | ({"logprobs_within": float(f"{worst:.2g}")} if worst else {})


def _logprob_distance(here: Answer, there: Answer) -> float:
    """Largest difference of what was told of the same tokens."""
    pairs = list(zip(here.logprobs, there.logprobs, strict=False))[: _common(here.tokens, there.tokens)]
    if here.prompt is not None and there.prompt is not None:
        pairs += zip(here.prompt.logprobs or [], there.prompt.logprobs or [], strict=True)
    worst = 0.0
    for one, other in pairs:
        worst = max(worst, abs(one.logprob - other.logprob))
        worst = max([worst, *(abs(a - b) for a, b in zip(one.top_logprobs, other.top_logprobs, strict=True))])
    if here.prompt is not None and here.prompt.embedding is not None and there.prompt is not None:
        vectors = [np.frombuffer(each.embedding or b"", "<f4") for each in (here.prompt, there.prompt)]
        worst = max(worst, float(np.abs(vectors[0] - vectors[1]).max()))
    return worst


def _common(one: list[int], other: list[int]) -> int:
    """Tokens up to the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _gap(cpu: LocalEngine, job: Job, here: Answer, there: Answer) -> float | None:
    """Between the CPU's scores of the two tokens where the answers part. None: cannot be told, for penalties and
    grammars look at what came before."""
    at = _common(here.tokens, there.tokens)
    params = job.params
    special = params.presence or params.frequency or params.repetition != 1.0 or params.grammar or params.bad_words
    if special or params.logit_bias or params.allowed_ids or at >= min(len(here.tokens), len(there.tokens)):
        return None
    context = job.prompt + here.tokens[:at]
    asked = SamplingParams(max_tokens=1, temperature=0.0, logprobs=VOCAB)
    logprobs = cpu.run([Job(context, asked)]).answers[0].logprobs[0]
    scores = torch.tensor(logprobs.top_logprobs, dtype=torch.float32)
    ids = torch.tensor(logprobs.top_ids)
    if params.temperature > 0:
        keys = noise.row_keys([params.seed], [len(context)], torch.device("cpu"))
        scores = scores / params.temperature + noise.gumbel(ids[None], keys)[0]
    by_id = dict(zip(ids.tolist(), scores.tolist(), strict=True))
    return float(f"{abs(by_id[here.tokens[at]] - by_id[there.tokens[at]]):.3g}")


# --- what is asked ---


def make_scenarios() -> Scenarios:
    rng = random.Random(7)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(VOCAB - 1) for _ in range(length)]

    def jobs(changes: list[dict[str, Any]], out: int = 40) -> list[Job]:
        """One for each length of prompt; changes of the parameters in turn."""
        made = []
        for index, length in enumerate(LENGTHS):
            params = SamplingParams(max_tokens=out, temperature=0.0, seed=rng.getrandbits(63))
            made.append(Job(prompt(length), msgspec.structs.replace(params, **changes[index % len(changes)])))
        return made

    temperatures = [{"temperature": t} for t in (0.3, 0.7, 1.0, 1.7)]
    filters = [
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 0.9, "min_p": 0.2},
        {"temperature": 1.1, "top_k": 300, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 0.8, "top_p": 0.05},
    ]
    penalties = [
        {"presence": 1.5},
        {"frequency": 0.7, "temperature": 1.0},
        {"repetition": 1.3},
        {"presence": 0.5, "frequency": 0.5, "repetition": 1.1, "temperature": 0.8, "top_k": 50},
        {"logit_bias": ((5, 4.0), (9, -100.0), (77, 2.0))},
        {"allowed_ids": tuple(range(300, 340)), "temperature": 1.0},
        {"bad_words": ((300,), (400, 401)), "temperature": 1.0},
        {"min_tokens": 20, "stop_ids": tuple(range(0, VOCAB, 7)), "temperature": 1.0},
    ]
    logprobs = [{"logprobs": 0}, {"logprobs": 5}, {"logprobs": 2, "temperature": 1.0}]
    prompts = [{"prompt_logprobs": 3}, {"embed": True, "max_tokens": 0}, {"prompt_logprobs": 0, "logprobs": 1}]
    grammars = [{"grammar": GRAMMAR}, {"grammar": GRAMMAR, "temperature": 1.0}]
    plain: list[dict[str, Any]] = [{}]
    shared = [prompt(96) for _ in range(6)]
    first = [Job(each, SamplingParams(max_tokens=24, temperature=0.0)) for each in shared]
    longer = [Job(each + prompt(30), SamplingParams(max_tokens=24, temperature=0.0)) for each in shared]
    aborted = [
        Job(job.prompt, job.params, leave_after=index % 9 + 1 if index % 2 else 0)
        for index, job in enumerate(jobs(plain + temperatures, 48))
    ]
    crowd = [Job(prompt(1 + index % 20), SamplingParams(max_tokens=5 + index, temperature=0.0)) for index in range(70)]
    return {
        "greedy": [jobs(plain)],
        "seeded": [jobs(temperatures)],
        "prefix": [first, first + longer],
        "filters": [jobs(filters)],
        "penalties": [jobs(penalties)],
        "logprobs": [jobs(logprobs), jobs(prompts, 8)],
        "grammar": [jobs(grammars, 60)],
        "mixed": [jobs(plain + temperatures + filters[:3] + penalties[:4] + logprobs[1:2] + grammars)],
        "aborts": [aborted],
        "crowd": [crowd],
        "preemption": [
            [
                Job(prompt(40), SamplingParams(max_tokens=60, temperature=float(index % 2), seed=index))
                for index in range(24)
            ]
        ],
    }


# --- bfloat16, and waits ---


def _bfloat16(case: Case, root: Path, device: str, overrides: dict[str, str]) -> dict[str, Any]:
    """Against float32 on the CPU: how much of the text is equal, and how often the likeliest next token is, given the
    CPU's text so far."""
    cpu = LocalEngine(engine_config(_folder(case, root), "cpu", {}, **_settings(case) | {"dtype": "float32"}))
    jobs = make_scenarios()["greedy"][0]
    wanted = cpu.run(jobs).answers
    cpu.close()
    settings = _settings(case) | {"dtype": "bfloat16"}
    other = LocalEngine(engine_config(_folder(case, root), device, overrides, **settings))
    found = agreement(other, jobs, [answer.tokens for answer in wanted])
    other.close()
    return {name: value for name, value in found.items() if name != "places"}


def agreement(engine: LocalEngine, jobs: list[Job], wanted: list[list[int]]) -> dict[str, Any]:
    """free: share of tokens before the first that differs. forced: share of tokens that are the likeliest after the
    wanted text before them. places: (sequence, index) of those that are not."""
    got = engine.run(jobs).answers
    equal = sum(_common(tokens, answer.tokens) for tokens, answer in zip(wanted, got, strict=True))
    total = sum(map(len, wanted))
    read = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0)
    forced = engine.run([Job(job.prompt + tokens, read) for job, tokens in zip(jobs, wanted, strict=True)]).answers
    places = []
    for index, (answer, tokens) in enumerate(zip(forced, wanted, strict=True)):
        told = answer.prompt.logprobs if answer.prompt is not None else None
        if told is None:
            raise RuntimeError("nothing was told of a prompt")
        ranks = [each.rank for each in told[len(told) - len(tokens) :]]
        places += [(index, at) for at, rank in enumerate(ranks) if rank != 1]
    return {
        "tokens": total,
        "free": round(equal / total, 4),
        "forced": round(1 - len(places) / total, 4),
        "places": places,
    }


def _syncs(case: Case, root: Path, device: str, overrides: dict[str, str]) -> dict[str, Any]:
    """Waits for the device that torch warns of, in so many decode steps of plain rows."""
    settings = _settings(case) | {"dtype": "bfloat16"}
    engine = LocalEngine(engine_config(_folder(case, root), device, overrides, **settings))
    rng = random.Random(5)
    prompts = [[rng.randrange(VOCAB) for _ in range(20)] for _ in range(16)]
    jobs = [
        Job(prompt, SamplingParams(max_tokens=SYNC_STEPS + 20, temperature=float(index % 2), seed=index))
        for index, prompt in enumerate(prompts)
    ]
    engine.run(jobs[:4])
    seen: dict[str, list[str]] = {"launch": [], "finish": []}
    calls = {"launch": 0, "finish": 0}
    ahead = []

    @contextmanager
    def around(name: str) -> Iterator[None]:
        calls[name] += 1
        ahead.append(engine.runner.ahead)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        if 10 <= calls[name] < 10 + SYNC_STEPS:
            seen[name] += [str(each.message).splitlines()[0] for each in caught]

    engine.runner.around = around
    torch.cuda.set_sync_debug_mode("warn")
    try:
        engine.run(jobs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    engine.close()
    return {
        "steps": SYNC_STEPS,
        "in_launch": len(seen["launch"]),
        "in_finish": len(seen["finish"]),
        "ahead": max(ahead, default=0),
        "first": (seen["launch"] or seen["finish"] or [""])[0][:200],
    }
