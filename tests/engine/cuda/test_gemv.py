"""Products of one row, and what is done in the same launch, against float64 and against separate steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cuda.gemv import Tiling, choose, linear_alone

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-5
BF16 = 2**-8  # one rounding
TILINGS = [Tiling(2, 64, 1), Tiling(4, 128, 4), Tiling(1, 256, 2)]


def drawn(columns: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias in bfloat16; products of size 1."""
    return (
        torch.randn(1, k).bfloat16(),
        (torch.randn(columns, k) / k**0.5).bfloat16(),
        torch.randn(columns).bfloat16(),
    )


def close(out: Tensor, expected: Tensor, roundings: int = 2) -> None:
    bound = roundings * BF16
    torch.testing.assert_close(out.cpu().double(), expected.double(), rtol=bound, atol=bound)


def poisoned(columns: int) -> Tensor:
    return torch.full((1, columns), float("nan"), dtype=torch.bfloat16, device=DEVICE)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize(("columns", "k"), [(48, 256), (37, 192), (40, 200)])
def test_linear(columns: int, k: int, tiling: Tiling) -> None:
    x, weight, bias = drawn(columns, k)
    out = poisoned(columns)
    linear_alone(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), out, tiling=tiling)
    close(out, F.linear(x.double(), weight.double(), bias.double()))
    linear_alone(x.to(DEVICE), weight.to(DEVICE), None, out, tiling=tiling)
    close(out, F.linear(x.double(), weight.double()))


@pytest.mark.parametrize("tiling", TILINGS)
def test_sum_with_the_residual(tiling: Tiling) -> None:
    x, weight, bias = drawn(40, 192)
    residual = torch.randn(1, 40).bfloat16()
    out = residual.to(DEVICE, copy=True)
    linear_alone(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), out, add=True, tiling=tiling)
    close(out, residual.double() + F.linear(x.double(), weight.double(), bias.double()))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("biased", [False, True])
def test_gate_and_up(tiling: Tiling, biased: bool) -> None:
    x, weight, bias = drawn(2 * 44, 160)
    out = poisoned(44)
    given = bias.to(DEVICE) if biased else None
    linear_alone(x.to(DEVICE), weight.to(DEVICE), given, out, gated=True, tiling=tiling)
    gate, up = F.linear(x.double(), weight.double(), bias.double() if biased else None).chunk(2, dim=1)
    close(out, F.silu(gate) * up)


@pytest.mark.parametrize("gated", [False, True])
def test_norm_that_comes_first(gated: bool) -> None:
    x, weight, _ = drawn(88, 200)
    scale = torch.randn(200).bfloat16()
    out = poisoned(44 if gated else 88)
    linear_alone(
        3 * x.to(DEVICE),
        weight.to(DEVICE),
        None,
        out,
        norm=(scale.to(DEVICE), EPS),
        gated=gated,
        tiling=Tiling(4, 256, 2),
    )
    normed = F.rms_norm(3 * x.double(), (200,), scale.double(), EPS)
    expected = F.linear(normed, weight.double())
    gate, up = expected.chunk(2, dim=1)
    close(out, F.silu(gate) * up if gated else expected, roundings=4)  # x too, and gate and up


@pytest.mark.parametrize(("columns", "k"), [(96, 64), (40, 1024), (24, 3072)])
def test_chosen_tilings_fit(columns: int, k: int) -> None:
    x, weight, _ = drawn(columns, k)
    out = poisoned(columns)
    linear_alone(x.to(DEVICE), weight.to(DEVICE), None, out)
    close(out, F.linear(x.double(), weight.double()))


def test_a_norm_is_possible_with_the_chosen_tiling() -> None:
    for k in (576, 1024, 2048, 4096, 5120, 8192):
        for gated in (False, True):
            tiling = choose(k, gated, normed=True)
            assert tiling.block_k >= k and tiling.block_n >= 1
