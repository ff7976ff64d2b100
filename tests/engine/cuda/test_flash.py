"""FlashAttention's place in a step. Its contract is written down here in plain torch; on a GPU where it is installed,
the real one is asked too."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.cuda import runner as runner_module
from engine.cuda.flash import MODULE, FlashAttention
from scheduler.types import Limits
from tests.engine.cuda.paged import Shape, Step, check, random_step
from tests.engine.cuda.test_runner import PLAIN, CudaHarness, folder, jobs_of, on_the_cpu

__all__ = ["folder"]  # a fixture

LIMITS = Limits(max_seqs=8, max_step_tokens=512, max_model_len=512, block_size=16)
NARROW = torch.bfloat16


def by_definition(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    page_table: Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int | None, int | None],
    **bounds: int,
) -> tuple[Tensor, None]:
    """Of flash_attn_varlen_func. keys, values: [pages, page_size, kv_heads, head_dim]; where a sequence has fewer
    queries than keys, they are its last."""
    assert causal
    assert window_size[1] in (None, 0)
    lengths = cu_seqlens_q.diff()
    assert int(lengths.max()) <= bounds["max_seqlen_q"]
    assert int(seqused_k.max()) <= bounds["max_seqlen_k"]
    out = torch.full_like(q, torch.nan)
    for index, (start, end) in enumerate(zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], strict=False)):
        num_keys = int(seqused_k[index])
        pages = page_table[index, : -(-num_keys // keys.shape[1])].long()
        k, v = (side[pages].flatten(0, 1)[:num_keys].double() for side in (keys, values))
        group = q.shape[1] // k.shape[1]
        scores = torch.einsum("thd,jhd->htj", q[start:end].double(), k.repeat_interleave(group, 1)) * softmax_scale
        own = torch.arange(num_keys - (end - start), num_keys, device=q.device)
        behind = own[:, None] - torch.arange(num_keys, device=q.device)[None, :]
        hidden = behind < 0
        if window_size[0] is not None:
            hidden |= behind > window_size[0]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[start:end] = torch.einsum("htj,jhd->thd", weights, v.repeat_interleave(group, 1)).to(q.dtype)
    return out, None


def kinds() -> list[Any]:
    found = [pytest.param(by_definition, torch.float32, id="by definition")]
    if torch.cuda.is_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                attend = importlib.import_module(MODULE).flash_attn_varlen_func
            except ImportError:
                return found
        found.append(pytest.param(attend, NARROW, id="FlashAttention 4"))
    return found


def runs_of(step: Step) -> Tensor:
    rows = step.rows[torch.from_numpy(step.starts).long()].tolist()
    ends = np.append(step.starts, step.num_tokens)
    return torch.tensor(np.array([ends, [*step.kv_lens, 0], [*rows, 0]], np.int32), device=step.q.device)


@pytest.mark.filterwarnings("ignore")  # of its compiler, to its authors
@pytest.mark.parametrize("window", [None, 1, 33])
@pytest.mark.parametrize(("attend", "dtype"), kinds())
@pytest.mark.parametrize("heads", [(8, 2), (6, 2), (4, 4)])
def test_what_it_is_given(
    attend: Any, dtype: torch.dtype, heads: tuple[int, int], window: int | None, device: torch.device
) -> None:
    step = random_step(Shape(*heads, 64, 16, dtype), [(63, 63), (5, 70), (1, 200), (40, 170), (128, 300)], device, 5)
    flash = FlashAttention(attend, LIMITS)
    out = flash(step.q[: step.num_tokens], step.cache, step.block_tables, runs_of(step), step.scale, window)
    check(step, out, window)


def test_steps_with_much_attention_go_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and chunks beside rows that decode: the tokens are those of the CPU."""
    calls: list[int] = []

    def counted(q: Tensor, *rest: Any, **named: Any) -> Any:
        calls.append(len(q))
        return by_definition(q, *rest, **named)

    jobs = jobs_of(PLAIN + PLAIN)
    expected, _ = on_the_cpu(folder, jobs)
    harness = CudaHarness(folder, num_blocks=60)
    harness.may_wait = True  # the definition looks at values
    harness.runner._model.flash = FlashAttention(counted, LIMITS)
    monkeypatch.setattr(runner_module, "LEAST_PAIRS", 300)
    assert harness.run(jobs) == expected
    some, layers = len(calls), 2
    assert some
    monkeypatch.setattr(runner_module, "LEAST_PAIRS", 1)
    assert harness.run(jobs_of([{"seed": 9}, *PLAIN])) == on_the_cpu(folder, jobs_of([{"seed": 9}, *PLAIN]))[0]
    assert len(calls) > some
    assert len(calls) % layers == 0
