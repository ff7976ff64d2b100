"""torch's profiler as a Tracer: what the host does, and on Nvidia GPUs the kernels and copies.

Times and names only. Shapes would be good to have, but with them torch records numbers that operations are given, and
token ids are among those.
"""

from __future__ import annotations

from pathlib import Path

from torch import cuda
from torch._C._profiler import _ExperimentalConfig
from torch.autograd.profiler import profile, record_function  # torch.profiler would import its compiler, for seconds

from engine.profile import Trace


class TorchTracer:
    """Made once the device is in use."""

    def __init__(self) -> None:
        self._device = "cuda" if cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._profile: profile | None = None
        self._span: record_function | None = None

    def warm_up(self) -> None:
        """The first time may take seconds, in which requests would stand still."""
        self.start()
        self.stop()

    def start(self) -> None:
        begun = profile(use_device=self._device, use_kineto=True, experimental_config=_trace_only())
        begun.__enter__()  # type: ignore[no-untyped-call]
        self._profile = begun

    def begin_step(self, number: int) -> None:
        self._span = record_function(f"step {number}")
        self._span.__enter__()  # type: ignore[no-untyped-call]

    def end_step(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None

    def stop(self) -> Trace:
        self.end_step()
        taken, self._profile = self._profile, None
        if taken is None:
            raise RuntimeError("the profiler has not been started")
        taken.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return _Taken(taken)


def _trace_only() -> _ExperimentalConfig | None:
    """Without what torch makes of events for Python, which takes several times as long as to stop. None: this torch
    always makes it."""
    try:
        return _ExperimentalConfig(trace_only=True)
    except TypeError:
        return None


class _Taken:
    def __init__(self, taken: profile) -> None:
        self._taken = taken

    def write(self, path: Path) -> None:
        self._taken.export_chrome_trace(str(path))  # type: ignore[no-untyped-call]
