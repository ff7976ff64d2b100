"""What surrounds serving, in this process."""

import gc
import socket
import subprocess
import sys
import weakref
from pathlib import Path

from rich.console import Console

from gateway.assembly import keep_what_is_there
from gateway.config import Config
from gateway.metrics import Metrics
from gateway.model.resolve import ResolvedModel
from gateway.serve import Surroundings, _Plan, siblings_of


class Node:
    """One that only a collection can free."""

    def __init__(self) -> None:
        self.itself = self


def test_collections_pass_over_what_start_up_has_made_and_nothing_else() -> None:
    thresholds = gc.get_threshold()
    kept = Node()
    try:
        keep_what_is_there()
        assert not any(each is kept for each in gc.get_objects())
        later = weakref.ref(Node())
        assert later() is not None
        gc.collect()
        assert later() is None
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def test_what_starts_the_engine_is_imported_without_the_application() -> None:
    """Which takes most of a second to import, as long as the engine takes to import torch."""
    heavy = "{'hypercorn', 'starlette', 'numpy', 'jinja2'}"
    program = f"import sys, gateway.serve; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []


def test_a_gateway_that_is_started_later_reads_the_model_of_now_under_the_name_of_before(tmp_path: Path) -> None:
    console = Console(quiet=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        resolved = ResolvedModel(tmp_path / "old", "safetensors", "served")
        plan = _Plan(Config(gateways=2), Surroundings({}, console, console), None, listener, resolved, 0.0)
        now = [resolved]
        siblings = siblings_of(plan, tmp_path, Metrics(), 1, lambda: now[-1])
        models = [siblings._setup(1).model]
        now.append(ResolvedModel(tmp_path / "new", "gguf", "new"))
        models.append(siblings._setup(1).model)
    assert [(Path(each.path).name, each.format, each.name) for each in models] == [
        ("old", "safetensors", "served"),
        ("new", "gguf", "served"),
    ]
