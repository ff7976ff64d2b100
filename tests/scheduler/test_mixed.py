"""Steps in which some decode and others are in their prompt."""

from collections.abc import Callable

import pytest

from scheduler.policy import is_burst, prompt_budget
from scheduler.simulate import CostModel, Request, Simulation

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]


@pytest.mark.parametrize(
    ("waiting", "already", "burst"),
    [(64, False, False), (65, False, True), (64, True, True), (33, True, True), (32, True, False), (0, True, False)],
)
def test_a_burst_is_more_than_a_step_until_half_a_step_is_left(waiting: int, already: bool, burst: bool) -> None:
    assert is_burst(waiting, 64, already) == burst


@pytest.mark.parametrize(
    ("num_decodes", "cap", "burst", "budget"),
    [(3, 16, False, 16), (3, 99, False, 61), (3, 16, True, 61), (3, None, False, 61), (0, 16, False, 61)],
)
def test_the_cap_is_for_steps_that_decode_outside_a_burst(
    num_decodes: int, cap: int | None, burst: bool, budget: int
) -> None:
    assert prompt_budget(61, num_decodes, cap, burst) == budget


def counts(world: Simulation) -> list[int]:
    """Tokens of each sequence in the next step, which is carried out."""
    plan = world.launch()
    assert plan is not None
    rows = world.rows_of(plan)
    world.land()
    world.scheduler.check()
    return [count for _, _, count in rows]


@pytest.fixture
def decoding(sim: Sim, ask: Ask) -> Simulation:
    """One sequence that decodes; steps of 32 tokens, 8 of prompts beside decodes."""
    world = sim(max_step_tokens=32, mixed_prompt_tokens=8, num_blocks=80)
    world.submit(ask(12, max_tokens=40))
    assert counts(world) == [12]  # nobody decodes: whole
    return world


def fresh(ask: Ask, *lengths: int) -> list[Request]:
    return [ask([1000 * i + j for j in range(length)], max_tokens=40) for i, length in enumerate(lengths, 1)]


def test_few_prompts_share_small_steps_with_decodes(decoding: Simulation, ask: Ask) -> None:
    for request in fresh(ask, 20, 12):
        decoding.submit(request)
    assert [counts(decoding) for _ in range(4)] == [[1, 8], [1, 8], [1, 4, 4], [1, 1, 8]]
    assert counts(decoding) == [1, 1, 1]


def test_a_burst_takes_whole_steps_until_half_a_step_is_left(decoding: Simulation, ask: Ask) -> None:
    for request in fresh(ask, 24, 24, 24):
        decoding.submit(request)
    assert counts(decoding) == [1, 24, 4, 3]  # 72 wait
    assert counts(decoding) == [1, 1, 20, 9]  # 41
    assert counts(decoding) == [1, 1, 1, 8]  # 12: no burst any more
    assert counts(decoding) == [1, 1, 1, 4]


def test_what_comes_during_a_burst_prolongs_it(decoding: Simulation, ask: Ask) -> None:
    first, second, third = fresh(ask, 24, 24, 24)
    decoding.submit(first)
    decoding.submit(second)
    assert counts(decoding) == [1, 24, 4]
    decoding.submit(third)
    assert counts(decoding) == [1, 1, 20, 8]  # 44 wait
    assert counts(decoding) == [1, 1, 1, 8]


def test_a_prompt_in_its_middle_counts_as_waiting(decoding: Simulation, ask: Ask) -> None:
    [request] = fresh(ask, 60)
    decoding.submit(request)
    assert [counts(decoding) for _ in range(3)] == [[1, 28], [1, 28], [1, 4]]


def test_small_steps_shorten_gaps_and_not_the_wait_of_a_burst(sim: Sim, ask: Ask) -> None:
    def run(cap: int | None, late: int) -> tuple[float, float]:
        """The longest gap of four that decode, and the longest time to first token of `late` prompts."""
        world = sim(
            cost=CostModel(0.002, token_s=0.001),
            max_step_tokens=64,
            mixed_prompt_tokens=cap,
            num_blocks=400,
            max_seqs=32,
        )
        early = [ask([i, 7], max_tokens=40) for i in range(4)]
        others = [ask([100 * i + j for j in range(16)], max_tokens=1, at=0.1) for i in range(1, late + 1)]
        traces = list(world.run([*early, *others]).traces.values())
        gap = max(max(trace.itls_s) for trace in traces[:4])
        return gap, max(trace.times[0] - trace.arrived for trace in traces[4:])

    even, whole = run(16, late=4), run(None, late=4)
    assert even[0] < whole[0] / 2
    assert run(16, late=14)[1] <= 1.2 * run(None, late=14)[1]
