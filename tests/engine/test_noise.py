"""The noise is a pure function, the same in every implementation, and distributed as it should be."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from engine import noise, noise_native, noise_numba
from engine.native import library

CPU = torch.device("cpu")


def gumbel_by_the_book(seed: int, position: int, token: int) -> float:
    """The specification in the module's docstring, in plain Python integers."""
    word = (1 << 32) - 1
    z = (seed + position * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D & word
        x ^= x >> 15
        x = x * 0x846CA68B & word
        return x ^ (x >> 16)

    h = mix((mix(token ^ (z & word)) + (z >> 32)) & word)
    return -math.log(-math.log((h + 0.5) / 2**32))


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 1, 8191, 2**31])
def test_follows_its_specification(seed: int, position: int) -> None:
    tokens = [0, 1, 2, 49151, 2**20]
    keys = noise.row_keys([seed], [position], CPU)
    got = noise.gumbel(torch.tensor(tokens), keys)[0].tolist()
    assert got == pytest.approx([gumbel_by_the_book(seed, position, token) for token in tokens], rel=1e-6)


def test_no_value_is_above_the_bound_that_pruning_relies_on() -> None:
    largest = -math.log(-math.log((2**32 - 0.5) / 2**32))
    assert largest < noise.MAX_GUMBEL


PRUNED = {"numba": noise_numba.draw_pruned} | {
    variant: partial(noise_native.draw_pruned, variant=variant) for variant in library.runnable()
}
pruned = pytest.mark.parametrize("draw", PRUNED.values(), ids=PRUNED.keys())
Draw = Callable[[Tensor, Tensor, Tensor], Tensor]


@pruned
@pytest.mark.parametrize("vocab", [5000, 64, 3])
@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
def test_pruned_kernels_draw_what_hashing_every_id_draws(spread: float, vocab: int, draw: Draw) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(64, vocab, generator=generator) * spread
    logits[:9, vocab // 2 :] = float("-inf")  # as grammars leave it
    temperatures = torch.rand(64, generator=generator) * 2 + 0.01
    keys = noise.row_keys(list(range(64)), list(range(100, 164)), CPU)
    assert torch.equal(draw(logits, temperatures, keys), noise.draw_all(logits, temperatures, keys))


@pruned
def test_equal_scores_are_won_by_the_lowest_id(draw: Draw) -> None:
    logits = torch.full((1, 200), float("-inf"))
    keys = noise.row_keys([1], [1], CPU)
    assert draw(logits, torch.ones(1), keys).item() == noise.draw_all(logits, torch.ones(1), keys).item() == 0


def test_on_a_cpu_the_compiled_kernel_draws() -> None:
    assert noise.draw(torch.tensor([[0.0, 90.0, 0.0]]), torch.ones(1), noise.row_keys([1], [1], CPU)).tolist() == [1]
    code = "import sys, torch; from engine import noise; one = torch.ones(1)\n"
    code += "noise.draw(one[None], one, noise.row_keys([1], [1], one.device)); print('numba' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == str(not library.runnable())


def test_draws_follow_the_softmax() -> None:
    """Chi-square of 20,000 draws over 20 ids with 19 degrees of freedom: above 43.8 once in a thousand seeds."""
    logits = torch.linspace(-2, 2, 20).repeat(20_000, 1)
    keys = noise.row_keys([1234] * 20_000, list(range(20_000)), CPU)
    counts = noise.draw(logits, torch.full((20_000,), 0.8), keys).bincount(minlength=20).double()
    expected = (logits[0] / 0.8).softmax(dim=0).double() * 20_000
    assert ((counts - expected) ** 2 / expected).sum().item() < 43.8


def test_neighbouring_seeds_and_positions_are_independent() -> None:
    tokens = torch.arange(2000)
    rows = noise.gumbel(tokens, noise.row_keys([5, 6, 5, 5], [9, 9, 10, 11], CPU))
    correlation = torch.corrcoef(rows) - torch.eye(4)
    assert correlation.abs().max() < 0.1


def test_a_device_without_float64_draws_the_same_by_the_hosts_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's GPUs are: a tensor that says so, and cannot be widened."""

    class Narrow(Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("mps")

        def double(self, *args: object) -> Tensor:
            raise TypeError("no float64")

        def cpu(self, *args: object) -> Tensor:
            return self.as_subclass(Tensor)

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return super().__torch_function__(func, types, args, kwargs or {})

    monkeypatch.setattr(Tensor, "to", lambda self, *args, **kwargs: self)
    keys = noise.row_keys([1, 2], [3, 4], CPU)
    tokens = torch.arange(100)
    expected = noise.gumbel(tokens, keys)
    assert torch.equal(noise.gumbel(tokens.as_subclass(Narrow), keys.as_subclass(Narrow)), expected)
