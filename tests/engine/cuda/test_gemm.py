"""Products in tiles, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cuda.gemm import LEAST_N, MAX_ROWS, SHARED_BYTES, Tiling, choose, room, serves, tiled_linear

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = 2**-8  # one rounding
TILINGS = [Tiling(16, 32, 64, 2, 4), Tiling(64, 32, 128, 3, 4), Tiling(32, 64, 64, 2, 8)]


def drawn(rows: int, columns: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias in bfloat16; products of size 1. What lies behind x is not finite."""
    x = room(rows, k, like=torch.empty(0, dtype=torch.bfloat16, device=DEVICE))
    x.as_strided((128, k), (k, 1)).fill_(float("nan"))
    x.copy_(torch.randn(rows, k))
    return x, (torch.randn(columns, k) / k**0.5).bfloat16().to(DEVICE), torch.randn(columns).bfloat16().to(DEVICE)


def poisoned(rows: int, columns: int) -> Tensor:
    return torch.full((rows, columns), float("nan"), dtype=torch.bfloat16, device=DEVICE)


def close(out: Tensor, expected: Tensor, roundings: int = 2) -> None:
    bound = roundings * BF16
    torch.testing.assert_close(out.cpu().double(), expected.cpu().double(), rtol=bound, atol=bound)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("rows", [2, 17, 64, 65])
def test_linear(rows: int, tiling: Tiling) -> None:
    x, weight, bias = drawn(rows, 128, 256)
    out = poisoned(rows, 128)
    tiled_linear(x, weight, bias, out, tiling=tiling)
    close(out, F.linear(x.double(), weight.double(), bias.double()))
    tiled_linear(x, weight, None, out, tiling=tiling)
    close(out, F.linear(x.double(), weight.double()))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("biased", [False, True])
def test_gate_and_up(tiling: Tiling, biased: bool) -> None:
    x, weight, bias = drawn(19, 2 * 128, 320)
    out = poisoned(19, 128)
    tiled_linear(x, weight, bias if biased else None, out, gated=True, tiling=tiling)
    gate, up = F.linear(x.double(), weight.double(), bias.double() if biased else None).chunk(2, dim=1)
    close(out, F.silu(gate) * up, roundings=3)  # of gate, of silu, of the product


def test_x_needs_room_for_whole_tiles() -> None:
    x, weight, _ = drawn(20, 64, 256)
    with pytest.raises(AssertionError):
        tiled_linear(x.clone(), weight, None, poisoned(20, 64), tiling=TILINGS[1])


@pytest.mark.parametrize("rows", [2, 64, 65, 128, 129, 256])
@pytest.mark.parametrize("columns", [3072, 14336, 4864, 1536, 96, 32])
@pytest.mark.parametrize("gated", [False, True])
def test_chosen_tilings_fit(rows: int, columns: int, gated: bool) -> None:
    tiling = choose(rows, columns, gated)
    assert columns % tiling.block_n == 0 and tiling.block_n >= LEAST_N
    stage = 2 * tiling.block_k * (tiling.block_m + (2 if gated else 1) * tiling.block_n)
    assert tiling.num_stages >= 3 and tiling.num_stages * stage <= SHARED_BYTES


def test_what_it_serves() -> None:
    hopper = DEVICE.type == "cuda" and torch.cuda.get_device_capability()[0] == 9
    small = torch.empty(256, 256, dtype=torch.bfloat16, device=DEVICE)
    large = torch.empty(4096, 4096, dtype=torch.bfloat16, device=DEVICE)
    for rows, of_small, of_large, of_large_gated in [
        (128, True, True, True),
        (192, True, False, False),
        (256, True, False, True),
        (MAX_ROWS + 1, False, False, False),
    ]:
        assert serves(rows, small, gated=False) == serves(rows, small, gated=True) == (hopper and of_small)
        assert serves(rows, large, gated=False) == (hopper and of_large)
        assert serves(rows, large, gated=True) == (hopper and of_large_gated)
    assert not serves(64, small[:250], gated=True)
    assert not serves(64, small.float(), gated=True)
