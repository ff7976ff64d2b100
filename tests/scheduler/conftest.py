"""A small engine without a model. No torch here: these tests run where it cannot be imported."""

from collections.abc import Callable
from typing import Any

import pytest

from scheduler.simulate import Request, Simulation
from scheduler.types import Limits, SamplingParams

SMALL = {"max_seqs": 8, "max_step_tokens": 64, "max_model_len": 64, "block_size": 4, "watermark": 0.0}


@pytest.fixture
def sim() -> Callable[..., Simulation]:
    """sim(num_blocks=, depth=, cost=, and any of Limits)."""

    def make(num_blocks: int = 42, depth: int = 1, cost: Any = None, **limits: Any) -> Simulation:
        return Simulation(Limits(**{**SMALL, **limits}), num_blocks, cost, depth)

    return make


@pytest.fixture
def ask() -> Callable[..., Request]:
    """ask(prompt, max_tokens, any of SamplingParams or Request). A number as prompt: so many different tokens."""

    def make(prompt: int | list[int], max_tokens: int = 4, **options: Any) -> Request:
        names = SamplingParams.__struct_fields__
        params = {name: options.pop(name) for name in list(options) if name in names}
        tokens = [100 + i for i in range(prompt)] if isinstance(prompt, int) else prompt
        return Request(tokens, SamplingParams(max_tokens, **params), **options)

    return make
