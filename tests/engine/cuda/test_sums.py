"""Sums over ranks against torch's: processes in Triton's interpreter, which write into one file's memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cuda.sums import Links, inbox_words, sum_rows
from tests.engine.cuda.interpreter import hasten, repair

MAX_ROWS, EPS, DEADLINE_S = 4, 1e-5, 120
ROOT = Path(__file__).parent.parent.parent.parent
# Also where there is a GPU. The path: ranks are started without the current folder on theirs.
INTERPRETED = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
CASES = ((2, 64, torch.float32), (3, 80, torch.bfloat16))  # ranks, hidden size, type
SIZES = ((1, True), (3, True), (1, False), (4, True), (1, True))  # rows, and whether to add to what was there


def links(path: Path, rank: int, num_ranks: int, hidden: int, dtype: torch.dtype) -> Links:
    """In a file that all ranks map."""
    words = inbox_words(num_ranks, MAX_ROWS, hidden, dtype)
    shared = torch.from_file(str(path), shared=True, size=num_ranks * words, dtype=torch.int64)
    addresses = [shared[each * words :].data_ptr() for each in range(num_ranks)]
    return Links(torch.tensor(addresses), torch.zeros(MAX_ROWS, dtype=torch.int32), rank, shared)


def inputs(turn: int, rank: int, rows: int, hidden: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, hidden, generator=torch.Generator().manual_seed(100 * turn + rank)).to(dtype)


def run(path: Path, rank: int, num_ranks: int, hidden: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Residuals and their norms."""
    found, link = [], links(path, rank, num_ranks, hidden, dtype)
    for turn, (rows, add) in enumerate(SIZES):
        residual, norm = inputs(turn, 50, rows, hidden, dtype), inputs(turn, 51, 1, hidden, dtype)[0]
        out = torch.full_like(residual, float("nan"))
        sum_rows(inputs(turn, rank, rows, hidden, dtype), residual, norm, EPS, out, link, add=add)
        found.append((residual, out))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank has found in each case."""
    path: Path = tmp_path_factory.mktemp("sums")
    command = [sys.executable, "-m", "tests.engine.cuda.test_sums", str(path)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=INTERPRETED) for rank in range(max(case[0] for case in CASES))
    ]
    try:
        assert not any(process.wait(DEADLINE_S) for process in processes)
    finally:
        for process in processes:
            process.kill()
    return path


@pytest.mark.parametrize(("num_ranks", "hidden", "dtype"), CASES)
def test_sums_of_all_ranks(num_ranks: int, hidden: int, dtype: torch.dtype, folder: Path) -> None:
    found = [torch.load(folder / f"{num_ranks}-{rank}") for rank in range(num_ranks)]
    for turn, (rows, add) in enumerate(SIZES):
        parts = [inputs(turn, rank, rows, hidden, dtype).double() for rank in range(num_ranks)]
        expected = sum(parts, inputs(turn, 50, rows, hidden, dtype).double() * add)
        residual, out = found[0][turn]
        torch.testing.assert_close(residual.double(), expected, rtol=ROUNDING[dtype], atol=1e-6)
        norm = inputs(turn, 51, 1, hidden, dtype)[0]
        normed = F.rms_norm(residual.double(), (hidden,), norm.double(), EPS)
        torch.testing.assert_close(out.double(), normed, rtol=ROUNDING[dtype], atol=1e-6)
        for rank in range(1, num_ranks):
            assert torch.equal(found[rank][turn][0], residual)
            assert torch.equal(found[rank][turn][1], out)


if __name__ == "__main__":
    repair()
    hasten()
    where, number = Path(sys.argv[1]), int(sys.argv[2])
    for size, width, kind in CASES:
        if number < size:
            torch.save(run(where / f"inboxes-{size}", number, size, width, kind), where / f"{size}-{number}")
