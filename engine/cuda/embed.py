"""Token ids to hidden states, where an id may be the one that was sampled last in a row.

program t:   ids[t] >= 0 ? ids[t] : last_tokens[rows[t]]   ->   table[id, :] -> out[t, :]
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _embed(ids, rows, last_tokens, table, out, hidden: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    token = tl.load(ids + t).to(tl.int64)
    if token < 0:
        token = tl.load(last_tokens + tl.load(rows + t))
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    tl.store(out + t * hidden + column, tl.load(table + token * hidden + column, mask=inside), mask=inside)


def embed(ids: Tensor, rows: Tensor, last_tokens: Tensor, table: Tensor, out: Tensor) -> None:
    """ids, rows: [tokens] int32; last_tokens: [rows] int64; table: [vocab, hidden]; out: [tokens, hidden]."""
    hidden = table.shape[1]
    block = triton.next_power_of_2(hidden)
    _embed[(len(ids),)](ids, rows, last_tokens, table, out, hidden, block, num_warps=4)
