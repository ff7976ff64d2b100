"""What lies between the qkv product and attention: norms of heads, rotation, and the write to the paged cache.

    qkv[t]:          | q heads ........ | k heads | v heads |     head_dim each
    program (t, g):    heads g * G .. g * G + G - 1, whatever they are

    tile:            [G, half] left and [G, half] right halves; half is padded to a power of two
    q: normed, rotated, back to qkv;  k: normed, rotated, to the cache;  v: to the cache as it is

Token t goes to block block_tables[rows[t], positions[t] // block_size], place positions[t] % block_size.
Bytes a token: (q + 2 kv) times 1 read and 1 write. 8,192 tokens of 8B on an H100: 94 % of its copy bandwidth.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.launch import gdc_launch_dependents, gdc_wait, options
from engine.kvcache import LayerKV


@triton.jit
def _rope_write(
    qkv,
    rows,
    positions,
    block_tables,
    keys,
    values,
    cos,
    sin,
    q_norm,
    k_norm,
    eps,
    max_blocks,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NORM: tl.constexpr,
    ROPE: tl.constexpr,
    OVERLAP: tl.constexpr,
    HEADS: tl.constexpr,  # of one program
    HALF: tl.constexpr,  # power of two, at least head_dim / 2
):
    half: tl.constexpr = HEAD_DIM // 2
    all_heads: tl.constexpr = Q_HEADS + 2 * KV_HEADS
    dtype = qkv.dtype.element_ty
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, HALF)[None, :]
    in_half = i < half
    inside = in_half & (head < all_heads)
    is_q = head < Q_HEADS
    is_v = head >= Q_HEADS + KV_HEADS
    position = tl.load(positions + t)
    block = tl.load(block_tables + tl.load(rows + t).to(tl.int64) * max_blocks + position // BLOCK_SIZE).to(tl.int64)

    if OVERLAP:
        gdc_launch_dependents()
    if NORM:
        left_weight = _either(is_q, q_norm + i, k_norm + i, in_half)
        right_weight = _either(is_q, q_norm + half + i, k_norm + half + i, in_half)
    if ROPE:
        angle = position.to(tl.int64) * half + i
        c = tl.load(cos + angle, mask=in_half, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=in_half, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()  # for qkv alone: the rest is as old as the step

    source = qkv + t * (all_heads * HEAD_DIM) + head * HEAD_DIM + i
    left = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mean = tl.sum(left * left + right * right, axis=1) / HEAD_DIM
        inverse = tl.rsqrt(mean + eps)[:, None]
        left = tl.where(is_v, left, (left * inverse * left_weight).to(dtype).to(tl.float32))
        right = tl.where(is_v, right, (right * inverse * right_weight).to(dtype).to(tl.float32))
    if ROPE:
        rotated = left * c - right * s
        right = tl.where(is_v, right, right * c + left * s)
        left = tl.where(is_v, left, rotated)

    if NORM or ROPE:
        tl.store(source, left.to(dtype), mask=inside & is_q)
        tl.store(source + half, right.to(dtype), mask=inside & is_q)
    kv_head = head - Q_HEADS
    place = block * (KV_HEADS * BLOCK_SIZE * HEAD_DIM) + (position % BLOCK_SIZE) * HEAD_DIM + i
    to_key = keys + place + kv_head * (BLOCK_SIZE * HEAD_DIM)
    to_value = values + place + (kv_head - KV_HEADS) * (BLOCK_SIZE * HEAD_DIM)
    is_k = (head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS)
    tl.store(to_key, left.to(dtype), mask=inside & is_k)
    tl.store(to_key + half, right.to(dtype), mask=inside & is_k)
    tl.store(to_value, left.to(dtype), mask=inside & is_v)
    tl.store(to_value + half, right.to(dtype), mask=inside & is_v)


@triton.jit
def _either(is_q, of_q, of_k, inside):
    """[heads, half] float32: the weight of queries' heads, else that of keys'."""
    return tl.where(
        is_q,
        tl.load(of_q, mask=inside, other=0.0).to(tl.float32),
        tl.load(of_k, mask=inside, other=0.0).to(tl.float32),
    )


def rope_write(
    qkv: Tensor,
    rows: Tensor,
    positions: Tensor,
    block_tables: Tensor,
    cache: LayerKV,
    cos: Tensor,
    sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    apply_rope: bool,
    overlap: bool = False,
) -> None:
    """Norms (if there are weights) and rotates q in place in qkv, the same of k to the cache, v to the cache.

    qkv: [tokens, q + 2 kv]; rows, positions: [tokens] int32; block_tables: [rows, max_blocks] int32;
    cos, sin: [max_len, head_dim / 2]; q_norm, k_norm: [head_dim], both or none.
    """
    tokens = len(rows)
    _, kv_heads, block_size, head_dim = cache.keys.shape
    all_heads = qkv.shape[1] // head_dim
    heads = 4 if tokens <= 512 else 16
    half = triton.next_power_of_2(head_dim // 2)
    num_warps = min(max(heads * half // 256, 1), 4)  # 16 bytes a thread and load
    _rope_write[(tokens, triton.cdiv(all_heads, heads))](
        qkv,
        rows,
        positions,
        block_tables,
        cache.keys,
        cache.values,
        cos,
        sin,
        q_norm,
        k_norm,
        eps,
        block_tables.shape[1],
        all_heads - 2 * kv_heads,
        kv_heads,
        head_dim,
        block_size,
        q_norm is not None,
        apply_rope,
        overlap,
        heads,
        half,
        **options(num_warps, overlap),
    )
