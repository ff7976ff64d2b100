"""Products in tiles, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cuda.gemm import LEAST_N, MAX_ROWS, SHARED_BYTES, Tiling, choose, room, serves, tiled_linear
from engine.cuda.norm import rms_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HOPPER = DEVICE.type == "cuda" and torch.cuda.get_device_capability()[0] == 9
OVERLAPS = [False, True] if HOPPER else [False]
BF16 = 2**-8  # one rounding
TILINGS = [Tiling(16, 32, 64, 2, 4), Tiling(64, 32, 128, 3, 4), Tiling(32, 64, 64, 2, 8)]


def spacious(rows: int, columns: int) -> Tensor:
    """Neither what is in it nor what lies behind it is finite."""
    x = room(rows, columns, like=torch.empty(0, dtype=torch.bfloat16, device=DEVICE))
    x.as_strided((128, columns), (columns, 1)).fill_(float("nan"))
    return x


def drawn(rows: int, columns: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias in bfloat16; products of size 1."""
    x = spacious(rows, k)
    x.copy_(torch.randn(rows, k))
    return x, (torch.randn(columns, k) / k**0.5).bfloat16().to(DEVICE), torch.randn(columns).bfloat16().to(DEVICE)


def poisoned(rows: int, columns: int) -> Tensor:
    return torch.full((rows, columns), float("nan"), dtype=torch.bfloat16, device=DEVICE)


def close(out: Tensor, expected: Tensor, roundings: int = 2) -> None:
    bound = roundings * BF16
    torch.testing.assert_close(out.cpu().double(), expected.cpu().double(), rtol=bound, atol=bound)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("rows", [2, 17, 64, 65])
def test_linear(rows: int, tiling: Tiling, overlap: bool) -> None:
    x, weight, bias = drawn(rows, 128, 256)
    out = poisoned(rows, 128)
    tiled_linear(x, weight, bias, out, tiling=tiling, overlap=overlap)
    close(out, F.linear(x.double(), weight.double(), bias.double()))
    tiled_linear(x, weight, None, out, tiling=tiling, overlap=overlap)
    close(out, F.linear(x.double(), weight.double()))


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("biased", [False, True])
def test_gate_and_up(tiling: Tiling, biased: bool, overlap: bool) -> None:
    x, weight, bias = drawn(19, 2 * 128, 512)
    out = poisoned(19, 128)
    tiled_linear(x, weight, bias if biased else None, out, gated=True, tiling=tiling, overlap=overlap)
    gate, up = F.linear(x.double(), weight.double(), bias.double() if biased else None).chunk(2, dim=1)
    close(out, F.silu(gate) * up, roundings=3)  # of gate, of silu, of the product


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_chain_of_kernels_that_wait_for_one_another(overlap: bool) -> None:
    """Each overwrites what the one before it read; where they overlap, none may do so early."""
    rows, k = 24, 256
    x, weight, _ = drawn(rows, 2 * k, k)
    norm = torch.ones(k, dtype=torch.bfloat16, device=DEVICE)
    normed, expected = spacious(rows, k), x.double()
    for _ in range(6):
        rms_norm(x, norm, 1e-5, normed, overlap)
        tiled_linear(normed, weight, None, x, gated=True, overlap=overlap)
        before = F.rms_norm(expected, (k,), eps=1e-5).bfloat16().double()
        gate, up = F.linear(before, weight.double()).bfloat16().double().chunk(2, dim=1)
        expected = (F.silu(gate).bfloat16().double() * up).bfloat16().double()
    assert (x.double() - expected).norm() < 0.05 * expected.norm()


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
    small = torch.empty(256, 256, dtype=torch.bfloat16, device=DEVICE)
    large = torch.empty(4096, 4096, dtype=torch.bfloat16, device=DEVICE)
    for rows, of_small, of_large, of_large_gated in [
        (128, True, True, True),
        (192, True, False, False),
        (256, True, False, True),
        (MAX_ROWS + 1, False, False, False),
    ]:
        assert serves(rows, small, gated=False) == serves(rows, small, gated=True) == (HOPPER and of_small)
        assert serves(rows, large, gated=False) == (HOPPER and of_large)
        assert serves(rows, large, gated=True) == (HOPPER and of_large_gated)
    assert not serves(64, small[:250], gated=True)
    assert not serves(64, small.float(), gated=True)
