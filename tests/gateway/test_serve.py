"""What surrounds serving, in this process."""

import gc
import subprocess
import sys
import weakref

from gateway.assembly import keep_what_is_there


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
