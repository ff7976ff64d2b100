"""Which options go with Ray, and what an engine takes of a node. Light: imported whether there is Ray or not."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.config import Config, ConfigError

CERTIFICATES = ("engine_tls_cert", "engine_tls_key", "engine_tls_ca")


@dataclass(frozen=True, slots=True)
class Share:
    """Of a node, for one engine."""

    num_cpus: float
    num_gpus: int

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.num_cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})

    def __str__(self) -> str:
        cpus = f"{self.num_cpus:g} CPU" + "s" * (self.num_cpus != 1)
        return cpus + (f" and {self.num_gpus} GPU" + "s" * (self.num_gpus > 1) if self.num_gpus else "")


def check_ray(config: Config) -> None:
    """Raises ConfigError."""
    given = [name for name in CERTIFICATES if getattr(config, name)]
    if not config.ray:
        if config.attach or given:
            raise ConfigError(f"{'attach' if config.attach else given[0]} goes with --ray")
        return
    if any(importlib.util.find_spec(package) is None for package in ("ray", "cryptography")):
        raise ConfigError("ray needs more packages: pip install 'headrace[ray]'")
    if given and config.attach:
        raise ConfigError(f"{given[0]}: who attaches to a server is told its certificates")
    if given and len(given) < len(CERTIFICATES):
        raise ConfigError(f"{', '.join(CERTIFICATES)} are given together, or made")
    if config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: with --ray it is auto, cpu or cuda, and Ray chooses which; not {config.device!r}")
    if config.admin and config.attach:
        raise ConfigError("admin: engines are drained and reloaded at the gateway that keeps them")
    if config.debug_profile:
        raise ConfigError("debug_profile: traces are files of the engine's machine, so not with --ray")


def share_of(config: Config, resources: Mapping[str, float], width: int) -> Share:
    """resources: of the whole cluster. width: GPUs of an engine, where it uses any."""
    on_gpus = config.device == "cuda" or (config.device == "auto" and resources.get("GPU", 0.0) >= 1)
    return Share(float(config.threads or 1), width if on_gpus else 0)


def num_replicas(config: Config, resources: Mapping[str, float], share: Share) -> int:
    """As many as were asked for, or else as there are GPUs for."""
    possible = int(resources.get("GPU", 0.0)) // share.num_gpus if share.num_gpus else 1
    return config.replicas or max(1, possible)
