"""Draws against the oracle of engine/noise.py, which they must equal bit for bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import noise
from engine.cuda import sampling
from engine.cuda.filters import bounds

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_ROWS = 12


class Rows:
    """Device tables of some rows, and a step with one token of each of some of them."""

    def __init__(self, rows: list[int], padding: int = 0) -> None:
        generator = np.random.default_rng(3)
        self.seeds = generator.integers(0, 2**64, NUM_ROWS, np.uint64)
        self.temperatures = torch.rand(NUM_ROWS) * 1.5 + 0.01
        self.rows = torch.tensor([0, *rows], dtype=torch.int32)  # the first token is no sample
        self.positions = torch.randint(0, 100_000, (len(self.rows),), dtype=torch.int32)
        self.samples = torch.arange(1, len(self.rows), dtype=torch.int32)
        self.num_real = len(rows) - padding
        self.last_tokens = torch.full((NUM_ROWS,), -7)

    def draw(self, logits: Tensor) -> Tensor:
        """The kernels' tokens; last_tokens holds what they wrote there."""
        seeds = torch.from_numpy(self.seeds.view(np.int64))
        counts = torch.tensor([0, 0, len(self.rows), self.num_real, 0, 0, 0, 0], dtype=torch.int32)
        step = (self.samples, self.rows, self.positions, self.temperatures, seeds, counts)
        scratch = sampling.scratch(*logits.shape, DEVICE).fill_(0x7FFFFFFF00000000)
        out, last = torch.full((len(logits),), -7, device=DEVICE), self.last_tokens.to(DEVICE, copy=True)
        everything = bounds(len(logits), DEVICE)
        sampling.sample_plain(logits.to(DEVICE), *(t.to(DEVICE) for t in step), everything, scratch, out, last)
        self.last_tokens = last.cpu()
        return out.cpu()

    def expected(self, logits: Tensor) -> Tensor:
        rows = self.rows[self.samples].long()
        temperatures = self.temperatures[rows]
        seeds, positions = [int(self.seeds[r]) for r in rows], (self.positions[self.samples] + 1).tolist()
        keys = noise.row_keys(seeds, positions, torch.device("cpu"))
        drawn = noise.draw_all(logits.float(), torch.where(temperatures > 0, temperatures, 1.0), keys)
        return torch.where(temperatures > 0, drawn, logits.float().argmax(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0, 12.0])
@pytest.mark.parametrize(("rows", "vocab"), [([3, 1], 2500), ([1, 2, 3, 4, 5, 6, 7, 8, 9], 5000)])
def test_draws_what_the_oracle_draws(rows: list[int], vocab: int, spread: float, dtype: torch.dtype) -> None:
    logits = (torch.randn(len(rows), vocab) * spread).to(dtype)
    table = Rows(rows)
    table.temperatures[3] = 0.0
    expected = table.expected(logits)
    assert torch.equal(table.draw(logits), expected)
    last = torch.full((NUM_ROWS,), -7)
    last[torch.tensor(rows)] = expected
    assert torch.equal(table.last_tokens, last)


def test_many_draws_of_one_distribution_in_which_ids_rival_each_other() -> None:
    """Spread and ties as a coarse head in bfloat16 has them."""
    logits = (torch.randn(40, 1100) * 2).round().bfloat16()
    table = Rows([row % NUM_ROWS for row in range(40)])
    assert torch.equal(table.draw(logits), table.expected(logits))


def test_a_temperature_so_low_that_bounds_are_not_used_gives_the_same() -> None:
    logits = torch.randn(2, 1500) * 1e-32
    table = Rows([1, 2])
    table.temperatures[1:3] = 1e-31
    assert torch.equal(table.draw(logits), table.expected(logits))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_lowest_of_equals_wins(temperature: float) -> None:
    logits = torch.full((2, 3000), float("-inf"))
    logits[0, [2999, 1200, 1100, 40]] = torch.tensor([1.0, 5.0, 5.0, -3.0]) * (1e9 if temperature else 1.0)
    logits[1, 1700:] = torch.tensor(0.0) if temperature == 0 else float("inf")
    logits[1, 1800] = -0.0 if temperature == 0 else float("inf")
    table = Rows([4, 5])
    table.temperatures[:] = temperature
    assert table.draw(logits).tolist() == [1100, 1700]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_unusable_logits_give_a_token_all_the_same(temperature: float) -> None:
    logits = torch.full((3, 2100), float("-inf"))
    logits[1] = float("nan")
    logits[2, ::2] = float("nan")
    logits[2, 2001] = -50.0
    table = Rows([1, 2, 3])
    table.temperatures[:] = temperature
    assert table.draw(logits).tolist() == [0, 0, 2001]


def test_padding_is_left_alone() -> None:
    table = Rows([1, 2, 3, 4], padding=2)
    logits = torch.randn(4, 1300)
    expected = table.expected(logits)[:2].tolist()
    assert table.draw(logits).tolist() == [*expected, -7, -7]
    assert table.last_tokens.tolist() == [-7, *expected, *[-7] * 9]


def test_bound_is_above_the_noise_and_tight_where_noise_is_large() -> None:
    h = torch.cat((torch.randint(0, 2**32, (100_000,)), 2**32 - 1 - torch.arange(1000), torch.arange(1000))).double()
    u = (h + 0.5) / 2**32
    noise_, bound = -(-u.log()).log(), -(1 - u).log()
    assert (bound >= noise_ - 1e-12).all()
    assert ((bound - noise_)[noise_ > 7] < 1e-3).all()
