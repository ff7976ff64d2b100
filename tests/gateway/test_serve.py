"""What surrounds serving, in this process."""

import gc
import weakref

from gateway.serve import keep_what_is_there


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
