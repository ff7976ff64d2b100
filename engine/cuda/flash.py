"""FlashAttention in place of prefill.py in steps with much attention, where it is installed: pip install flash-attn-4.

Its kernels read the paged cache as it is, seen with other strides. On an H100, TFLOP/s of the causal half, theirs and
ours (32 heads of 128, 8 of keys): 8 prompts of 1,024 tokens 355 / 288, one of 8,192 625 / 437, one of 32,768 606 / 385,
2 chunks of 2,048 behind 30,000 tokens 580 / 410. Calling them from Python takes longer than ours, and a graph would
have room for the most runs that a step can have, which costs small steps more than it gives. So they are for steps in
no graph, from LEAST_PAIRS on: there the device is busy for longer than the host.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.kvcache import LayerKV
from engine.models.spec import ModelSpec
from scheduler.types import Limits

log = logging.getLogger("headrace.engine")
MODULE = "flash_attn.cute"
LEAST_PAIRS = 1 << 24  # of a token and a key that it sees, in a step
FIRST_CAPABILITY, LAST_CAPABILITY = (9, 0), (11, 0)  # Hopper, Blackwell: where it reads paged caches


class FlashAttention:
    """attend: flash_attn_varlen_func of FlashAttention 4, or what takes the same arguments."""

    def __init__(self, attend: Callable[..., Any], limits: Limits) -> None:
        self._attend = attend
        self._limits = limits

    def __call__(
        self, q: Tensor, cache: LayerKV, block_tables: Tensor, runs: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """q: [tokens, heads, head_dim], of the runs; runs: [3, runs + 1] int32, as in engine/cuda/step.py. Returns
        [tokens, heads, head_dim]."""
        starts, keys, rows = runs[0], runs[1, :-1], runs[2, :-1]
        found = self._attend(
            q,
            cache.keys.transpose(1, 2),
            cache.values.transpose(1, 2),
            cu_seqlens_q=starts,
            seqused_k=keys,
            # Bounds that never change: kernels are compiled anew for some others.
            max_seqlen_q=self._limits.max_step_tokens,
            max_seqlen_k=self._limits.max_model_len,
            page_table=block_tables.index_select(0, rows),
            softmax_scale=scale,
            causal=True,
            window_size=(None if window is None else window - 1, None if window is None else 0),
        )
        result: Tensor = found[0] if isinstance(found, tuple) else found
        return result


def load(spec: ModelSpec, limits: Limits, cache: LayerKV) -> FlashAttention | None:
    """None where it is not installed, or not for this device and type. Compiles its kernels. cache: of any size."""
    device, dtype = cache.keys.device, cache.keys.dtype
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if not FIRST_CAPABILITY <= torch.cuda.get_device_capability(device) <= LAST_CAPABILITY:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its compiler, to its authors
        try:
            flash = FlashAttention(importlib.import_module(MODULE).flash_attn_varlen_func, limits)
            _compile(flash, spec, limits, cache)
        except ModuleNotFoundError as error:
            if error.name not in ("flash_attn", MODULE):
                log.warning("FlashAttention is not used, it lacks a module: %s", error)
            return None
        except Exception as error:  # a library's, of a version that we have not seen: ours serve as well
            log.warning("FlashAttention is installed, but fails here and is not used: %r", error)
            return None
    return flash


def _compile(flash: FlashAttention, spec: ModelSpec, limits: Limits, cache: LayerKV) -> None:
    device = cache.keys.device
    num_tokens = limits.block_size
    q = torch.zeros(num_tokens, spec.num_heads, spec.head_dim, dtype=cache.keys.dtype, device=device)
    tables = torch.zeros(1, -(-limits.max_model_len // limits.block_size), dtype=torch.int32, device=device)
    runs = torch.tensor([[0, num_tokens], [num_tokens, 0], [0, 0]], dtype=torch.int32, device=device)
    for window in {spec.window(index) for index in range(spec.num_layers)}:
        flash(q, cache, tables, runs, spec.head_dim**-0.5, window)
    torch.cuda.synchronize(device)
