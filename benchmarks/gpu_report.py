"""What a part of the GPU benchmark has found out: kept in a file from the first row on, so that a part that is cut off
leaves what it had."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHOWN_CHARS = 700


class Report:
    """A dictionary in a JSON file."""

    def __init__(self, path: Path, deadline: float) -> None:
        """deadline: on time.monotonic()'s clock, which processes share."""
        self.values: dict[str, Any] = {}
        self._path = path
        self._deadline = deadline

    @property
    def left_s(self) -> float:
        return self._deadline - time.monotonic()

    def put(self, name: str, value: Any) -> None:
        self.values[name] = value
        text = json.dumps(value)
        print(f"  {name}: {text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + ' ...'}", flush=True)
        unfinished = self._path.with_suffix(".partial")
        unfinished.write_text(json.dumps(self.values))
        os.replace(unfinished, self._path)

    def attempt(self, name: str, call: Callable[[], Any], least_s: float = 0.0) -> Any:
        """Keeps what it returns, or that it failed, which is no reason not to go on. None: it failed, or was not begun
        because less than least_s is left."""
        if self.left_s < least_s:
            self.put(f"{name} error", f"not begun: {self.left_s:.0f} s are left, it may take {least_s:.0f}")
            return None
        try:
            value = call()
        except Exception as error:  # told in the report
            traceback.print_exc()
            self.put(f"{name} error", f"{type(error).__name__}: {error}"[:500])
            return None
        self.put(name, value)
        return value
