"""Codes of GGUF blocks against what the gguf package reads in them."""

from dataclasses import replace

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from gguf.quants import quantize as gguf_quantise

from engine.loaders import gguf_kinds
from engine.loaders.blocks import READERS, SIMPLE, Blocks, codes_of, quantise
from engine.native import library
from engine.native.weights import Arena, pack

SHAPE = (6, 512)
EXACT = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]


def normal(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, SHAPE).astype(np.float32)


@pytest.mark.parametrize("kind", gguf_kinds.Kind, ids=lambda kind: kind.name)
def test_kinds_are_those_of_the_format(kind: gguf_kinds.Kind) -> None:
    assert Kind(kind).name == kind.name
    assert gguf_kinds.BLOCKS[kind] == GGML_QUANT_SIZES[Kind(kind)]


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_blocks_are_taken_as_they_are(kind: Kind) -> None:
    raw = gguf_quantise(normal(), kind)
    codes = codes_of(raw.reshape(-1), kind, SHAPE)
    assert codes is not None
    assert codes.codes.max() < 1 << codes.bits
    np.testing.assert_array_equal(codes.values(), dequantize(raw, kind))


@pytest.mark.parametrize("variant", library.runnable())
@pytest.mark.parametrize("wide", [False, True], ids=["as narrow as they are", "eight bits"])
@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_compiled_readers_read_what_these_do(kind: Kind, wide: bool, variant: str) -> None:
    """Tile by tile, also where halves are tiny, huge or no numbers, with rows in another order beside others."""
    raw = gguf_quantise(np.resize(normal(), (37, 512)), kind).reshape(37 * 16, -1)
    halves = np.array([0, -0.0, 2e-7, -6e-8, 5e-5, 9000, 65504, np.inf, -np.inf], np.float16)
    raw[: len(halves), :2] = halves[:, None].view(np.uint8)
    order = np.random.default_rng(5).permutation(37)
    blocks = Blocks(raw.reshape(-1), gguf_kinds.Kind(kind), (37, 512), order)
    beside = [quantise(normal(3))] if wide else []
    with np.errstate(over="ignore"):
        expected = pack([*beside, blocks.codes(), replace(blocks, order=None).codes()], None, variant, Arena())
    got = pack([*beside, blocks, replace(blocks, order=None)], None, variant, Arena())
    assert (got.bits, got.outputs) == (expected.bits, expected.outputs)
    np.testing.assert_array_equal(got.tiles, expected.tiles)


def test_scales_of_super_blocks_are_rounded_to_halves() -> None:
    rng = np.random.default_rng(1)
    _, num_bytes = GGML_QUANT_SIZES[Kind.Q4_K]
    raw = rng.integers(0, 256, (SHAPE[0] * SHAPE[1] // 256, num_bytes), np.uint8)
    raw[:, :4] = rng.uniform(1e-4, 1e-2, (len(raw), 2)).astype(np.float16).view(np.uint8)
    expected = dequantize(raw, Kind.Q4_K).reshape(SHAPE)
    codes = codes_of(raw.reshape(-1), Kind.Q4_K, SHAPE)
    assert codes is not None and codes.bits == 4
    assert np.abs(codes.values() - expected).max() < np.abs(expected).max() * 2**-10


def test_what_no_format_holds_is_quantised_to_eight_bits() -> None:
    values = normal(2)
    values[0, :32], values[1, :32], values[2, :32] = 0.0, 3.5, -1e-7
    codes = quantise(values)
    assert codes.bits == 8
    groups = values.reshape(*codes.scales.shape, 32)
    span = groups.max(-1) - groups.min(-1)
    error = np.abs(codes.values().reshape(groups.shape) - groups).max(-1)
    # Half a step, and the rounding of the least to a half.
    assert (error <= span / 255 * 0.51 + np.abs(groups.min(-1)) * 2**-11 + 1e-7).all()


def test_other_formats_are_told_apart() -> None:
    assert set(READERS) == {*EXACT, Kind.Q4_K}
    assert set(SIMPLE) == set(EXACT)
    assert codes_of(np.zeros(210, np.uint8), Kind.Q6_K, (1, 256)) is None
    assert codes_of(np.zeros(18, np.uint8), Kind.Q4_0, (1, 16)) is None
