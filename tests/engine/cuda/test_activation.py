"""silu(gate) * up as the CPU's decoder computes it."""

import pytest
import torch
import torch.nn.functional as F

from engine.cuda.activation import silu_mul

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Rounded twice, and silu may be rounded to the other side.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 1.5 * 2**-7, torch.float16: 1.5 * 2**-10}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("tokens", "ffn"), [(1, 1536), (3, 72), (2, 3072), (66, 40)])
def test_gated_as_torch_does(tokens: int, ffn: int, dtype: torch.dtype) -> None:
    gate_up = (torch.randn(tokens, 2 * ffn) * 6).to(dtype)
    out = torch.full((tokens, ffn), float("nan"), dtype=dtype, device=DEVICE)
    silu_mul(gate_up.to(DEVICE), out)
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(out.cpu(), F.silu(gate) * up, rtol=ROUNDING[dtype], atol=1e-6)
