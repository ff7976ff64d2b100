"""What the GPUs of this machine do, through NVML: a library of Nvidia's driver, of which no engine need be asked.

Needs the package nvidia-ml-py (`pip install "headrace[gpu]"`). Without it, or a driver, there are no such series.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_log = logging.getLogger("headrace.metrics")

Read = Callable[[ModuleType, Any], float]  # of NVML and the handle of a device
SERIES: tuple[tuple[str, str, Read], ...] = (
    ("memory_used_bytes", "Memory in use.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ("memory_total_bytes", "Memory there is.", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    (
        "utilization_ratio",
        "Share of the last sample period in which a kernel ran.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    ("power_watts", "Power drawn.", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
    (
        "temperature_celsius",
        "Temperature of the chip.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
)


def load_nvml() -> ModuleType | None:
    """NVML, begun. None where it is not installed or there is no driver."""
    try:
        import pynvml  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _log.debug("no GPU to watch: %s", error)
        return None
    module: ModuleType = pynvml
    return module


class GpuCollector(Collector):
    """Reads at each scrape, in microseconds. What a card does not tell has no series."""

    def __init__(self, registry: CollectorRegistry, nvml: ModuleType | None = None) -> None:
        """nvml: for tests; else what there is."""
        self._nvml = nvml or load_nvml()
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        nvml = self._nvml
        if nvml is None:
            return
        for name, text, read in SERIES:
            family = GaugeMetricFamily(f"headrace_gpu_{name}", text, labels=("gpu",))
            for index in range(nvml.nvmlDeviceGetCount()):
                try:
                    family.add_metric([str(index)], float(read(nvml, nvml.nvmlDeviceGetHandleByIndex(index))))
                except nvml.NVMLError:
                    continue
            if family.samples:
                yield family
