"""Quantised weights as they are or widened: the rule, the measurement, and that the engine does what they say."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from engine import build as building
from engine.build import Phases, build
from engine.host import Host
from engine.models.spec import ModelSpec
from engine.models.weights import num_weights
from engine.native import choice, library
from engine.native.choice import MARGIN, MIX, Measured, measure, plain_wins, sample_of
from engine.native.weights import fits
from scheduler.protocol import EngineConfig, Ready

CPU = torch.device("cpu")
SMALL = ModelSpec(
    architecture="llama",
    num_layers=3,
    hidden=96,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    rotary_dim=32,
    ffn=160,
    vocab_size=203,
    norm_eps=1e-5,
    rope_theta=10000.0,
    context_length=256,
    tied=False,
    qkv_bias=True,
    qk_norm=True,
    windows=(None, 5, 40),
)
LARGE = replace(SMALL, hidden=4096, num_heads=32, num_kv_heads=8, head_dim=128, rotary_dim=128, ffn=14336)
NATIVE = {1: 0.2e-3, 32: 0.6e-3, 256: 4.0e-3}
SLOWER = {1: 0.9e-3, 32: 1.4e-3, 256: 5.5e-3}
FASTER = {1: 0.3e-3, 32: 0.3e-3, 256: 0.9e-3}  # as matrix units may have it
NATIVE_FASTER = Measured(NATIVE, SLOWER, 1.0)
PLAIN_FASTER = Measured(NATIVE, FASTER, 1.0)


@pytest.mark.parametrize(("measured", "expected"), [(NATIVE_FASTER, False), (PLAIN_FASTER, True)])
def test_the_faster_one_is_chosen(measured: Measured, expected: bool) -> None:
    assert plain_wins(measured) is expected


def test_a_mix_counts_and_not_one_number_of_rows() -> None:
    """A lead at prompts may be worth less than one at single tokens, and the other way round."""
    native = dict.fromkeys(MIX, 1.0)
    assert not plain_wins(Measured(native, native | {1: 1.5, 256: 0.1}, 1.0))
    assert plain_wins(Measured(native, native | {1: 1.5, 32: 0.1}, 1.0))


def test_near_ties_leave_weights_as_they_are() -> None:
    for native, expected in ((0.99 * MARGIN, False), (1.01 * MARGIN, True)):
        assert plain_wins(Measured(dict.fromkeys(MIX, native), dict.fromkeys(MIX, 1.0), 1.0)) is expected


def test_so_do_times_that_others_have_disturbed() -> None:
    assert not plain_wins(replace(PLAIN_FASTER, share=0.5))


def test_figures_and_choice_are_told() -> None:
    figures = (
        "layers like theirs take 0.20 / 0.60 / 4.00 ms for 1 / 32 / 256 tokens, widened to bfloat16 0.30 / 0.30 / 0.90"
    )
    assert PLAIN_FASTER.told("bfloat16") == f"quantised weights are widened to bfloat16: {figures}"
    disturbed = replace(PLAIN_FASTER, share=0.5).told("bfloat16")
    assert disturbed == f"quantised weights run as they are: {figures}, while other programs took the processors"


def test_a_sample_of_small_layers_has_several() -> None:
    one = num_weights(replace(sample_of(SMALL, 1 << 30), num_layers=1))
    assert sample_of(SMALL, 1 << 30).num_layers == SMALL.num_layers
    found = sample_of(SMALL, 2 * one)
    assert (found.num_layers, found.hidden, found.ffn, found.num_heads) == (2, 96, 160, 6)


@pytest.mark.parametrize("most", [1, 4 << 20, 8 << 20, 64 << 20])
def test_a_sample_of_a_large_layer_is_narrower(most: int) -> None:
    found = sample_of(LARGE, most)
    assert found.num_layers == 1
    assert fits(found, choice.BLOCK_SIZE)
    assert found.num_heads // found.num_kv_heads == 4
    if most > 1:
        assert 0.5 * most < num_weights(found) <= most


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [SMALL, LARGE], ids=["small", "large"])
def test_measuring(spec: ModelSpec, dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "WEIGHTS_A_THREAD", 1 << 18)
    found = measure(spec, bits, library.runnable()[0], Host(CPU, dtype, 1, "cpu"))
    assert found.share > 0
    for times in (found.native, found.plain):
        assert times.keys() == MIX.keys()
        assert all(0 < seconds < 60 for seconds in times.values())


@pytest.mark.parametrize(("pace", "repetitions"), [(1e-6, choice.MOST), (1.0, choice.FEWEST)])
def test_measuring_repeats_while_there_is_time(pace: float, repetitions: int) -> None:
    """And some times at least, however slow the machine is."""
    asked = [0, 0]

    def clock() -> float:
        asked[0] += 1
        return pace * asked[0]

    def cpu_clock() -> float:
        asked[1] += 1
        return 0.5 * pace * asked[1]

    found = measure(SMALL, 4, library.PORTABLE, Host(CPU, torch.float32, 1, "cpu"), clock, cpu_clock)
    assert asked[1] == repetitions * len(MIX) * 2 * 2
    assert found.share == pytest.approx(0.5)


class Started:
    """The default model, built in this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.phases: list[str] = []

    def ready(self, **settings: str) -> Ready:
        whole = {"model": str(self._path), "format": "gguf", "socket_path": "", "device": "cpu", "threads": 1}
        config = msgspec.convert(whole | {"kv_cache_bytes": 64 << 20, "max_seqs": 2} | settings, EngineConfig)
        phases = Phases(lambda name, done, total: None)
        ready = build(config, phases)[2]
        self.phases = [name for name, _ in phases.seconds]
        return ready


@pytest.fixture
def started(gguf_path: Path) -> Started:
    return Started(gguf_path)


@pytest.fixture
def runs_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor: where it has no instructions for it, slowly. Both ways are open."""
    monkeypatch.setattr(choice, "cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setattr(building, "native_variant", lambda *_: library.runnable()[0])


@pytest.mark.usefixtures("runs_natively")
@pytest.mark.parametrize(("measured", "attention"), [(NATIVE_FASTER, "native"), (PLAIN_FASTER, "numba")])
def test_the_engine_is_built_as_the_rule_says(
    started: Started,
    measured: Measured,
    attention: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bits: list[int] = []

    def measure(spec: ModelSpec, told: int, variant: str, host: Host) -> Measured:
        bits.append(told)
        return measured

    monkeypatch.setattr(choice, "measure", measure)
    with caplog.at_level(logging.INFO, "headrace.engine"):
        ready = started.ready()
    assert ready.attention.startswith(attention)
    assert ready.dtype.startswith("int4") == (attention == "native")
    assert bits == [4]
    assert any(phase.startswith("timing quantised") for phase in started.phases)
    assert any(message.startswith("quantised weights") and " ms " in message for message in caplog.messages)


@pytest.mark.usefixtures("runs_natively")
def test_weights_that_would_fill_the_memory_are_not_widened(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "available_bytes", lambda: 400 << 20)
    monkeypatch.setattr(choice, "measure", lambda *_: PLAIN_FASTER)
    assert started.ready().attention.startswith("native")


@pytest.mark.usefixtures("runs_natively")
def test_without_matrix_units_nothing_is_timed(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "cpu_flags", lambda: {"avx512_bf16", "amx_tile"})
    monkeypatch.setattr(choice, "measure", lambda *_: pytest.fail("timed"))
    assert started.ready().attention.startswith("native")


def test_nothing_is_timed_where_the_configuration_says_it(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "measure", lambda *_: pytest.fail("timed"))
    assert started.ready(dtype="float32").dtype == "float32"
    assert started.ready(attention="sdpa").attention == "sdpa"
