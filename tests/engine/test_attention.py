"""Every backend against the float64 oracle, on random batches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from engine.attention import sdpa
from engine.attention.base import AttentionBackend
from engine.attention.paged_numba import NumbaAttention
from engine.attention.reference import ReferenceAttention
from engine.attention.sdpa import SdpaAttention
from engine.batch import BatchView
from engine.kvcache import LayerKV

# Rounding of one store plus float32 sums, with head for unlucky cancellation.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    view: BatchView
    cache: LayerKV
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    block_size: int

    def run(self, backend: AttentionBackend, window: int | None) -> tuple[torch.Tensor, LayerKV]:
        cache = LayerKV(self.cache.keys.clone(), self.cache.values.clone())
        meta = backend.prepare(self.view, self.block_size)
        return backend.run(self.q, self.k, self.v, cache, meta, self.q.shape[-1] ** -0.5, window), cache


def random_case(seed: int, dtype: torch.dtype, rows: list[int] | None = None) -> Case:
    """Sequences with scattered blocks, some in decode (one row), some in the middle of a prompt, some whole."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    kv_heads, group = int(rng.integers(1, 4)), int(rng.choice([1, 2, 3, 4]))
    head_dim, block_size = int(rng.choice([8, 64, 80])), int(rng.choice([16, 32]))
    counts = rows or [int(rng.choice([1, 1, 2, 7, 33])) for _ in range(rng.integers(1, 7))]
    kv_lens = [count + int(rng.choice([0, 1, 15, 16, 50])) for count in counts]
    sizes = [-(-length // block_size) for length in kv_lens]
    free = iter(rng.permutation(sum(sizes)) + 2)
    tables = np.zeros((len(counts), max(sizes)), np.int32)
    for s, size in enumerate(sizes):
        tables[s, :size] = [next(free) for _ in range(size)]
    spans = zip(tables, counts, kv_lens, strict=True)
    slots = [t[p // block_size] * block_size + p % block_size for t, n, kv in spans for p in range(kv - n, kv)]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    side = (sum(sizes) + 2, kv_heads, block_size, head_dim)
    tokens = sum(counts)
    view = BatchView(
        ids=torch.zeros(tokens, dtype=torch.int64),
        positions=torch.tensor([p for n, kv in zip(counts, kv_lens, strict=True) for p in range(kv - n, kv)]),
        slots=torch.tensor(slots),
        sample_rows=torch.zeros(0, dtype=torch.int64),
        q_starts=np.cumsum([0, *counts], dtype=np.int32),
        kv_lens=np.array(kv_lens, np.int32),
        block_tables=tables,
    )
    q, k, v = (normal(tokens, heads, head_dim) for heads in (kv_heads * group, kv_heads, kv_heads))
    return Case(view, LayerKV(normal(*side), normal(*side)), q, k, v, block_size)


@pytest.mark.parametrize("window", [None, 1, 9, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [SdpaAttention(), NumbaAttention()], ids=lambda backend: backend.name)
def test_equals_the_oracle(backend: AttentionBackend, dtype: torch.dtype, window: int | None) -> None:
    for seed in range(12):
        case = random_case(seed, dtype)
        expected, expected_cache = case.run(ReferenceAttention(), window)
        got, cache = case.run(backend, window)
        torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert torch.equal(cache.keys, expected_cache.keys)
        assert torch.equal(cache.values, expected_cache.values)


@pytest.mark.parametrize("window", [None, 9])
def test_decodes_may_be_too_many_for_one_gathering(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(5, torch.float32, rows=[1, 4, 1, 1, 1, 1])
    expected, _ = case.run(SdpaAttention(), window)
    monkeypatch.setattr(sdpa, "GATHERED_BYTES", 1)
    torch.testing.assert_close(case.run(SdpaAttention(), window)[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", [SdpaAttention(), NumbaAttention()], ids=lambda backend: backend.name)
def test_what_others_have_left_in_a_block_does_no_harm(backend: AttentionBackend) -> None:
    case = random_case(7, torch.float32, rows=[1, 1, 5, 1])
    expected, _ = case.run(ReferenceAttention(), None)
    for table, length in zip(case.view.block_tables, case.view.kv_lens, strict=True):
        for place in range(length, -(-length // case.block_size) * case.block_size):
            for side in (case.cache.keys, case.cache.values):
                side[table[place // case.block_size], :, place % case.block_size] = torch.nan
    torch.testing.assert_close(case.run(backend, None)[0], expected, rtol=2e-6, atol=2e-6)


def test_a_decode_row_of_the_compiled_kernel_does_not_depend_on_its_neighbours() -> None:
    case = random_case(3, torch.float32, rows=[1, 1, 1, 1, 1, 1])
    together, _ = case.run(NumbaAttention(), None)
    for s in range(6):
        view = BatchView(
            case.view.ids[s : s + 1],
            case.view.positions[s : s + 1],
            case.view.slots[s : s + 1],
            case.view.sample_rows,
            np.array([0, 1], np.int32),
            case.view.kv_lens[s : s + 1],
            case.view.block_tables[s : s + 1],
        )
        rows = slice(s, s + 1)
        alone = Case(view, case.cache, case.q[rows], case.k[rows], case.v[rows], case.block_size)
        assert torch.equal(alone.run(NumbaAttention(), None)[0][0], together[s])


def test_the_oracle_is_plain_causal_attention() -> None:
    case = random_case(0, torch.float32, rows=[6])
    assert case.view.kv_lens[0] >= 6
    expected, cache = case.run(ReferenceAttention(), None)
    table, length = case.view.block_tables[0], int(case.view.kv_lens[0])
    keys = torch.cat([cache.keys[block] for block in table], dim=1)[:, :length]
    values = torch.cat([cache.values[block] for block in table], dim=1)[:, :length]
    mask = torch.ones(6, length, dtype=torch.bool).tril(length - 6)
    q = case.q.transpose(0, 1)[None]
    out = torch.nn.functional.scaled_dot_product_attention(q, keys[None], values[None], mask, enable_gqa=True)
    torch.testing.assert_close(out[0].transpose(0, 1), expected, rtol=1e-5, atol=1e-5)
