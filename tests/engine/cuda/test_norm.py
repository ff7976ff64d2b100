"""Norms against torch's own on the CPU, in float64 for the bounds."""

import pytest
import torch
import torch.nn.functional as F

from engine.cuda.norm import rms_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-5
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 64), (3, 576), (2, 1024), (5, 80), (2, 4096)])
def test_norm_is_that_of_torch(tokens: int, hidden: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(tokens, hidden).to(dtype), torch.randn(hidden).to(dtype)
    out = torch.full((tokens, hidden), float("nan"), dtype=dtype, device=DEVICE)
    rms_norm(x.to(DEVICE), weight.to(DEVICE), EPS, out)
    expected = F.rms_norm(x.double(), (hidden,), weight.double(), EPS)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=ROUNDING[dtype], atol=1e-6)
