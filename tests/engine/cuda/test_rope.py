"""rope_write against the decoder's own steps: norm of each head, rotation, then the place in the cache."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cuda.rope import rope_write
from engine.kvcache import LayerKV
from engine.models import rope

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
MAX_LEN = 100
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7}  # rounded twice


@dataclass(frozen=True, slots=True)
class Case:
    tokens: int
    q_heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    normed: bool = False
    rotated: bool = True


CASES = [
    Case(1, 9, 3, 64),
    Case(5, 4, 4, 128, normed=True),
    Case(3, 6, 2, 96, block_size=32),
    Case(3, 5, 1, 80, normed=True),
    Case(4, 8, 2, 64, rotated=False),
    Case(2, 3, 1, 64, normed=True, rotated=False),
    Case(66, 2, 1, 64, block_size=64, normed=True),
]


def table(head_dim: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(MAX_LEN).float(), 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim))
    return angles.cos(), angles.sin()


def expected(case: Case, qkv: Tensor, positions: Tensor, norms: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """In float64. q, k, v: [tokens, heads, head_dim]"""
    heads = qkv.double().view(case.tokens, -1, case.head_dim)
    q, k, v = torch.split(heads, [case.q_heads, case.kv_heads, case.kv_heads], dim=1)
    if case.normed:
        q, k = (F.rms_norm(x, (case.head_dim,), w.double(), EPS) for x, w in zip((q, k), norms, strict=True))
    if case.rotated:
        cos, sin = (part[positions, None].double() for part in table(case.head_dim))
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
    return q, k, v


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", CASES)
def test_as_the_decoder_does_it(case: Case, dtype: torch.dtype) -> None:
    num_rows, max_blocks = 4, -(-MAX_LEN // case.block_size)
    num_blocks = 2 + num_rows * max_blocks
    qkv = torch.randn(case.tokens, (case.q_heads + 2 * case.kv_heads) * case.head_dim).to(dtype)
    norms = [torch.randn(case.head_dim).to(dtype) if case.normed else None for _ in range(2)]
    places = torch.randperm(num_rows * MAX_LEN)[: case.tokens].int()  # no two tokens at one place
    rows, positions = places // MAX_LEN, places % MAX_LEN
    block_tables = 2 + torch.randperm(num_rows * max_blocks).int().view(num_rows, max_blocks)
    shape = (num_blocks, case.kv_heads, case.block_size, case.head_dim)
    before = [torch.randn(shape).to(dtype) for _ in range(2)]
    cache = LayerKV(*(part.to(DEVICE, copy=True) for part in before))

    out = qkv.to(DEVICE, copy=True)
    on_device = [t.to(DEVICE) for t in (rows, positions, block_tables)]
    cos, sin = (part.to(DEVICE) for part in table(case.head_dim))
    weights = [None if w is None else w.to(DEVICE) for w in norms]
    rope_write(out, *on_device, cache, cos, sin, *weights, EPS, case.rotated)

    q, k, v = expected(case, qkv, positions, norms)
    size = case.q_heads * case.head_dim
    close = {"rtol": ROUNDING[dtype], "atol": 8 * ROUNDING[dtype] if case.normed or case.rotated else 0.0}
    torch.testing.assert_close(out.cpu()[:, :size].double(), q.flatten(1), **close)
    assert torch.equal(out.cpu()[:, size:], qkv[:, size:])
    blocks, offsets = block_tables[rows, positions // case.block_size], positions % case.block_size
    torch.testing.assert_close(cache.keys.cpu()[blocks, :, offsets].double(), k, **close)
    assert torch.equal(cache.values.cpu()[blocks, :, offsets].double(), v)
    for part, old in zip((cache.keys, cache.values), before, strict=True):
        untouched = part.cpu().clone()
        untouched[blocks, :, offsets] = old[blocks, :, offsets]
        assert torch.equal(untouched, old)
