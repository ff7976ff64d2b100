"""The compiled forward pass, in each variant that runs here, against the plain one on the same weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import kvcache
from engine.loaders.blocks import Codes
from engine.models import decoder as plain_decoder
from engine.models.products import linear
from engine.models.spec import ModelSpec
from engine.native import library
from engine.native.weights import Arena, fits, pack
from tests.engine.native.models import (
    BLOCK_SIZE,
    BLOCKS,
    CPU,
    MAX_LEN,
    Run,
    random_codes,
    random_pair,
    rounded,
    spec_of,
    view_of,
)

VARIANTS = library.runnable()
SPECS = {
    "llama": spec_of(),
    "untied": spec_of(tied=False),
    "all biases": spec_of(qkv_bias=True, o_bias=True),
    "q and k norms": spec_of(qk_norm=True, head_dim=64),
    "layers without rope": spec_of(nope_layers=frozenset({1})),
    "windows": spec_of(windows=(None, 5, 40)),
    "one kv head": spec_of(num_heads=12, num_kv_heads=1),
    "a kv head for each": spec_of(num_heads=3, num_kv_heads=3),
    "a group of five": spec_of(num_heads=10, num_kv_heads=2),
    "wide heads": spec_of(head_dim=128, num_heads=2, num_kv_heads=1),
}
# Keys, values, queries and weights of attention are rounded to bfloat16, and what differs by that is here and there
# rounded to another code of 8 bits. A key too many or too few, or one in a wrong place, makes several times as much.
TOLERANCE = 0.05


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(203) for _ in range(length)]


def blocks(index: int) -> list[int]:
    """Of a sequence, in no order."""
    found = list(range(2 + 8 * index, 10 + 8 * index))
    random.Random(index).shuffle(found)
    return found


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.fixture
def quantised_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the plain forward pass the roundings that the compiled one has by design."""
    monkeypatch.setattr(plain_decoder, "linear", lambda x, weight, bias=None: linear(rounded(x), weight, bias))


@pytest.mark.usefixtures("quantised_activations")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@torch.inference_mode()
def test_equals_the_plain_forward_pass(spec: ModelSpec, variant: str) -> None:
    """Prompts, then chunks behind them, then single tokens, beside each other."""
    pair = random_pair(spec, variant)
    native, reference = pair.decoder(variant), pair.reference()
    starts = [0] * 5
    for step, counts in enumerate(([1, 37, 16, 5, 20], [1, 9, 1, 17, 1], [1, 1, 1, 1, 1], [2, 1, 30, 1, 1])):
        runs = [Run(prompt(n, 10 * step + i), starts[i], blocks(i)) for i, n in enumerate(counts)]
        starts = [start + n for start, n in zip(starts, counts, strict=True)]
        view = view_of(runs)
        got, expected = native.forward(view), reference.forward(view)
        assert distance(got, expected) < TOLERANCE
        assert distance(native.head(got), reference.head(got)) < 1e-3
        assert distance(native.norm(got), reference.norm(got)) < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours(variant: str) -> None:
    """Bit by bit: alone or together, prompt in one piece or in chunks, one thread or three."""
    pair = random_pair(spec_of(qk_norm=True, windows=(None, 20, None)), variant)
    prompts = [prompt(n, n) for n in (40, 3, 17)]
    whole = pair.decoder(variant).forward(view_of([Run(p, 0, blocks(i)) for i, p in enumerate(prompts)]))
    parts = whole.split([len(p) for p in prompts])
    for i, ids in enumerate(prompts):
        assert torch.equal(pair.decoder(variant, threads=3).forward(view_of([Run(ids, 0, blocks(0))])), parts[i])
    for sizes in ([1] * 40, [16, 16, 8], [7, 33], [39, 1]):
        chunked, at, found = pair.decoder(variant, threads=1), 0, []
        for size in sizes:
            other = Run(prompt(5, size), 0, blocks(3))
            found.append(chunked.forward(view_of([other, Run(prompts[0][at : at + size], at, blocks(1))]))[5:])
            at += size
        assert torch.equal(torch.cat(found), parts[0])


ASKED = {
    "none": [],
    "the last of each": [39, 42, 43, 62],
    "of one prompt": [62],
    "of neither end": [3, 4, 5, 20, 41, 45, 46],
    "all but one": [row for row in range(63) if row != 17],
    "all": list(range(63)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "windows", "one kv head", "a group of five", "wide heads"])
@torch.inference_mode()
def test_only_rows_that_are_asked_for(name: str, variant: str) -> None:
    """Bit by bit what they are when all are asked for; so is what follows, which reads keys and values of every row."""
    pair = random_pair(SPECS[name], variant)
    starts, counts = [0, 0, 5, 0], [40, 3, 1, 19]

    def runs(*counts: int) -> list[Run]:
        return [Run(prompt(n, 100 * starts[i] + i), starts[i], blocks(i)) for i, n in enumerate(counts)]

    before = view_of([Run(prompt(5, 9), 0, blocks(2))])
    prompts = view_of(runs(*counts))
    starts = [start + n for start, n in zip(starts, counts, strict=True)]
    chunks = view_of(runs(1, 9, 1, 1))
    whole = pair.decoder(variant)
    whole.forward(before)
    hidden, later = whole.forward(prompts), whole.forward(chunks)
    logits = whole.head(hidden).clone()
    for asked in ASKED.values():
        few = pair.decoder(variant, threads=3)
        assert few.forward(before, torch.zeros(0, dtype=torch.int64)).shape == (0, pair.spec.hidden)
        got = few.forward(prompts, torch.tensor(asked, dtype=torch.int64))
        assert torch.equal(got, hidden[asked])
        assert torch.equal(few.head(got), logits[asked])
        assert torch.equal(few.forward(chunks), later)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_prompt_in_chunks_of_which_only_the_last_row_is_asked_for(variant: str) -> None:
    """Beside single tokens, as steps have them: the same as alone and in one piece."""
    pair = random_pair(spec_of(qk_norm=True, windows=(None, None, 20)), variant)
    ids, other = prompt(61, 0), prompt(4, 1)
    expected = pair.decoder(variant).forward(view_of([Run(ids, 0, blocks(0))]))[-1:]
    beside = pair.decoder(variant).forward(view_of([Run(other, 0, blocks(0))]))
    chunked, at = pair.decoder(variant), 0
    for step, size in enumerate((16, 7, 1, 37)):
        ends = at + size == len(ids)
        view = view_of([Run(other[step : step + 1], step, blocks(1)), Run(ids[at : at + size], at, blocks(3))])
        got = chunked.forward(view, torch.tensor([0, size] if ends else [0]))
        assert torch.equal(got[0], beside[step])
        at += size
    assert torch.equal(got[1:], expected)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_what_was_in_the_cache_before_does_not_matter(variant: str) -> None:
    pair = random_pair(spec_of(), variant)
    clean = pair.decoder(variant)
    cache = kvcache.allocate(pair.spec, BLOCKS, BLOCK_SIZE, torch.bfloat16, CPU)
    for layer in cache.layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    dirty = pair.decoder(variant, cache=cache)
    for start, count in ((0, 18), (18, 1), (19, 5), (24, 1), (25, 7), (32, 1), (33, 1)):
        view = view_of([Run(prompt(count, start), start, blocks(0))])
        assert torch.equal(dirty.forward(view), clean.forward(view))


@torch.inference_mode()
def test_variants_agree() -> None:
    assert library.PORTABLE in VARIANTS
    spec = spec_of(qkv_bias=True, windows=(None, 9, None))
    view = view_of([Run(prompt(30, 1), 0, blocks(0)), Run(prompt(1, 2), 0, blocks(1))])
    found = [random_pair(spec, variant).decoder(variant).forward(view) for variant in VARIANTS]
    for other in found[1:]:
        assert distance(other, found[0]) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", [4, 8])
@torch.inference_mode()
def test_products(bits: int, variant: str) -> None:
    """Of all numbers of rows that are taken together, and of outputs that fill no tile."""
    codes = random_codes(np.random.default_rng(bits), 203, 96, bits)
    pair = random_pair(spec_of(), variant)
    pair.native.head = pack([codes], None, variant, Arena())
    decoder = pair.decoder(variant)
    for rows in (1, 2, 3, 4, 7, 8, 15, 16, 31, 33, 96, 200):
        hidden = torch.randn(rows, 96)
        expected = rounded(decoder.norm(hidden)).double() @ torch.from_numpy(codes.values()).double().T
        got = decoder.head(hidden)
        assert got.shape == (rows, 203)
        assert distance(got.double(), expected) < 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", [4, 8])
@torch.inference_mode()
def test_the_largest_products_do_not_overflow(bits: int, variant: str) -> None:
    """All weights' codes as large as they get, all activations' 127, or all -127."""
    most = (1 << bits) - 1
    groups = np.ones((32, 3), np.float16)
    codes = Codes(np.full((32, 96), most, np.uint8), groups / most, 0 * groups, bits)
    pair = random_pair(spec_of(), variant)
    pair.native.final_norm[:] = 1.0
    pair.native.head = pack([codes], None, variant, Arena())
    decoder = pair.decoder(variant)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0]).unsqueeze(1)
    torch.testing.assert_close(decoder.head(signs.expand(5, 96))[:, :32], 96 * signs.expand(5, 32), rtol=1e-3, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_steps_of_one_model_from_many_threads_in_turn(variant: str) -> None:
    """Threads of earlier models are gone, and those of this one sleep between steps."""
    pair = random_pair(spec_of(), variant)
    expected = None
    for threads in (1, 2, 5, 2):
        decoder = pair.decoder(variant, threads=threads)
        for _ in range(20):
            got = decoder.forward(view_of([Run(prompt(21, 3), 0, blocks(0))]))
            assert expected is None or torch.equal(got, expected)
            expected = got
        del decoder


@torch.inference_mode()
def test_a_step_that_is_too_large_is_refused() -> None:
    decoder = random_pair(spec_of(), VARIANTS[0]).decoder(VARIANTS[0])
    with pytest.raises(ValueError, match="97 tokens in a step that has room for 96"):
        decoder.forward(view_of([Run(prompt(97, 0), 0, blocks(0))]))


def test_what_fits() -> None:
    assert fits(spec_of(), 16) and fits(spec_of(), 64)
    changes: list[Callable[[], tuple[ModelSpec, int]]] = [
        lambda: (spec_of(), 8),
        lambda: (spec_of(hidden=80), 16),
        lambda: (spec_of(ffn=176), 16),
        lambda: (spec_of(head_dim=48, num_heads=2, num_kv_heads=1), 16),
        lambda: (replace(spec_of(), rotary_dim=16), 16),
    ]
    assert not any(fits(*change()) for change in changes)
    assert MAX_LEN % BLOCK_SIZE == 0


def test_the_best_variant_runs_here() -> None:
    assert library.best() in (*VARIANTS, None)
    assert library.best() != library.PORTABLE
