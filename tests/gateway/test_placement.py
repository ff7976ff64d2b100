"""How many engines there are, and where."""

from pathlib import Path

import pytest

from gateway.engines import placement
from gateway.engines.placement import NoSuchPlace, places, visible_gpus


@pytest.mark.parametrize(
    ("replicas", "width", "device", "gpus", "found"),
    [
        (0, 1, "auto", [], [None]),
        (0, 1, "auto", ["0"], [None]),
        (0, 1, "auto", ["0", "1", "2"], ["0", "1", "2"]),
        (0, 2, "auto", ["0", "1", "2", "3"], ["0,1", "2,3"]),
        (0, 2, "cuda", ["4", "5", "6"], [None]),
        (0, 1, "cpu", ["0", "1"], [None]),
        (0, 1, "cuda:1", ["0", "1"], [None]),
        (1, 1, "auto", ["0", "1"], [None]),
        (2, 1, "cuda", ["GPU-a", "GPU-b", "GPU-c"], ["GPU-a", "GPU-b"]),
        (3, 1, "cpu", [], [None, None, None]),
        (2, 1, "auto", [], [None, None]),
    ],
)
def test_each_engine_has_its_devices(
    replicas: int, width: int, device: str, gpus: list[str], found: list[str | None]
) -> None:
    made = places(replicas, width, device, gpus)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in made] == found


@pytest.mark.parametrize(
    ("replicas", "width", "device", "words"),
    [
        (3, 1, "auto", "3 engines need 3 GPUs, and 2 can be seen"),
        (2, 2, "cuda", "2 engines need 4 GPUs, and 2 can be seen"),
        (2, 1, "cuda:0", "2 engines cannot all be on cuda:0"),
    ],
)
def test_too_few_devices_are_told(replicas: int, width: int, device: str, words: str) -> None:
    with pytest.raises(NoSuchPlace, match=words):
        places(replicas, width, device, ["0", "1"])


@pytest.mark.parametrize(
    ("listed", "found"),
    [(None, ["0", "1"]), ("1", ["1"]), ("3, 0", ["3", "0"]), ("", []), ("-1", []), ("0,-1,2", ["0"])],
)
def test_gpus_are_those_that_cuda_would_see(
    listed: str | None, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia3", "nvidia7", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(placement.metadata, "version", lambda name: "2.12.0+cu130")
    environ = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert visible_gpus(environ, tmp_path) == found
    monkeypatch.setattr(placement.metadata, "version", lambda name: "2.12.0+cpu")
    assert visible_gpus(environ, tmp_path) == []
