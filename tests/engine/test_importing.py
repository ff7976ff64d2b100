"""torch is imported without its meta kernels, which are there for whoever asks for them afterwards."""

import subprocess
import sys

import pytest

from engine.importing import is_cpu

BEFORE = "import sys\nfrom engine.importing import UNUSED, import_torch\nimport_torch('cpu')\nimport torch\n"


def said(code: str) -> list[str]:
    run = subprocess.run([sys.executable, "-c", BEFORE + code], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_what_is_not_needed_is_left_out_and_leaves_no_trace() -> None:
    code = "print(UNUSED in sys.modules, 'torch._decomp' in sys.modules, hasattr(torch, '_meta_registrations'))\n"
    code += "one = torch.empty(6, 4, device='meta').to(torch.bfloat16)\n"
    code += "print([tuple(part.shape) for part in torch.split(one, [2, 4])], one.nbytes)"
    assert said(code) == ["False False False", "[(2, 4), (4, 4)] 48"]


def test_whoever_needs_it_still_gets_it() -> None:
    """torch's compiler traces with tensors without memory."""
    code = "import torch._meta_registrations\n"
    code += "from torch.fx.experimental.proxy_tensor import make_fx\n"
    code += "traced = make_fx(lambda x: torch.addmm(x, x, x).softmax(0), tracing_mode='fake')(torch.ones(3, 3))\n"
    code += "print(tuple(traced(torch.ones(3, 3)).shape), UNUSED in sys.modules)"
    assert said(code) == ["(3, 3) True"]


@pytest.mark.parametrize(("device", "expected"), [("cpu", True), ("cuda", False), ("cuda:1", False), ("mps", False)])
def test_for_gpus_all_of_it_is_imported(device: str, expected: bool) -> None:
    assert is_cpu(device) is expected
