"""Bounds found by halving against engine/sampler.py, which sorts: the same ids stay, equals included."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine import noise, sampler
from engine.cuda import filters, sampling
from engine.rows import Row
from scheduler.types import SamplingParams

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FILTERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 300, "top_p": 0.9},
    {"top_k": 2000},
    {"top_k": 5000, "top_p": 0.5},
    {"top_p": 0.05},
    {"top_p": 0.8},
    {"top_p": 0.999},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.1},
    {"top_k": 3, "min_p": 0.001},
    {},
]


def parameters(temperature: float) -> list[SamplingParams]:
    return [SamplingParams(1, temperature=temperature, seed=index, **asked) for index, asked in enumerate(FILTERS)]


class Step:
    """One sample of each row; the rows' tables in another order than the samples."""

    def __init__(self, params: Sequence[SamplingParams], logits: Tensor) -> None:
        num = len(params)
        self.params = params
        self.logits = logits.to(DEVICE)
        self.order = torch.randperm(num)
        self.samples = torch.arange(num, dtype=torch.int32)
        counts = torch.tensor([0, 0, num, num, 0, 0, 0, 0], dtype=torch.int32)
        self.positions = torch.randint(0, 1000, (num,), dtype=torch.int32)
        self.told = self._table("temperature", torch.float32)
        asked = filters.Filters(
            self._table("top_k", torch.int32), self._table("top_p", torch.float32), self._table("min_p", torch.float32)
        )
        self.step = [t.to(DEVICE) for t in (self.samples, self.order.int())]
        self.counts = counts.to(DEVICE)
        self.bounds = filters.bounds(num, DEVICE)
        filters.find_bounds(self.logits, *self.step, self.told, asked, self.counts, self.bounds)

    def _table(self, name: str, dtype: torch.dtype) -> Tensor:
        table = torch.zeros(len(self.params), dtype=dtype)
        table[self.order] = torch.tensor([getattr(p, name) for p in self.params], dtype=dtype)
        return table.to(DEVICE)

    def kept(self) -> list[set[int]]:
        logits, lowest, last = self.logits.float().cpu(), self.bounds.lowest.cpu(), self.bounds.last.cpu()
        ids = torch.arange(logits.shape[1])
        inside = (logits > lowest[:, None]) | ((logits == lowest[:, None]) & (ids <= last[:, None]))
        return [set(row.nonzero()[:, 0].tolist()) for row in inside]

    def drawn(self) -> list[int]:
        num = len(self.params)
        seeds = torch.zeros(num, dtype=torch.int64)
        seeds[self.order] = torch.tensor([p.seed for p in self.params])
        out, last = (torch.zeros(num, dtype=torch.int64, device=DEVICE) for _ in range(2))
        scratch = sampling.scratch(*self.logits.shape, DEVICE)
        tables = (self.positions.to(DEVICE), self.told, seeds.to(DEVICE), self.counts)
        sampling.sample_plain(self.logits, *self.step, *tables, self.bounds, scratch, out, last)
        return out.tolist()

    def expected(self) -> list[int]:
        rows = [
            Row(p, [0] * (position + 1), 1) for p, position in zip(self.params, self.positions.tolist(), strict=True)
        ]
        return sampler.sample(self.logits.float().cpu(), rows).tokens


def expected_kept(logits: Tensor, params: Sequence[SamplingParams]) -> list[set[int]]:
    """By sorting the whole vocabulary."""
    scaled = logits.float() / torch.tensor([p.temperature for p in params])[:, None]
    values, ids = scaled.sort(dim=1, descending=True, stable=True)
    kept = sampler._filter(values, scaled.logsumexp(dim=1), params)
    return [set(ids[index][kept[index]].tolist()) for index in range(len(params))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_keeps_what_sorting_keeps(dtype: torch.dtype, temperature: float, spread: float) -> None:
    params = parameters(temperature)
    logits = (torch.randn(len(params), 2100) * spread).to(dtype)
    assert Step(params, logits).kept() == expected_kept(logits, params)


def test_among_equals_the_lower_ids_stay() -> None:
    """Few different values, so that each cut falls among many equals; zeros of both signs are equals too."""
    params = parameters(1.0)
    logits = (torch.randn(len(params), 2100) * 1.2).round()
    logits[:, ::3] *= -1
    assert (logits.view(torch.int32) == -(2**31)).any(), "no zero is negative"
    assert Step(params, logits).kept() == expected_kept(logits, params)


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_what_the_sampler_draws(dtype: torch.dtype) -> None:
    params = [p for temperature in (0.7, 1.3) for p in parameters(temperature)]
    step = Step(params, (torch.randn(len(params), 3000) * 3).to(dtype))
    assert step.drawn() == step.expected()


def test_greedy_rows_and_those_without_filters_keep_everything() -> None:
    params = [SamplingParams(1, temperature=0.0, top_k=3, top_p=0.5), SamplingParams(1, temperature=0.8)]
    step = Step(params, torch.randn(2, 1500))
    assert [len(kept) for kept in step.kept()] == [1500, 1500]


def test_unusable_logits_end_too() -> None:
    """Nothing sensible is left to keep; it must not go on for ever, and a token comes."""
    params = [SamplingParams(1, temperature=1.0, top_k=5, top_p=0.5, min_p=0.1)] * 4
    logits = torch.full((4, 1200), float("-inf"))
    logits[1] = float("nan")
    logits[2] = float("inf")
    logits[3, 700:] = float("nan")
    logits[3, :700] = torch.randn(700)
    drawn = Step(params, logits).drawn()
    assert drawn[3] in logits[3, :700].topk(5).indices.tolist()
    assert all(0 <= token < 1200 for token in drawn)


def test_noise_of_a_filtered_draw_is_that_of_the_whole_vocabulary() -> None:
    """With filters that keep all, the draw is the plain one."""
    params = [SamplingParams(1, temperature=1.0, top_k=2999, seed=seed) for seed in range(6)]
    step = Step(params, torch.zeros(6, 3000))
    keys = noise.row_keys([p.seed for p in params], (step.positions + 1).tolist(), torch.device("cpu"))
    scores = noise.gumbel(torch.arange(2999), keys)
    assert step.drawn() == scores.argmax(dim=1).tolist()
