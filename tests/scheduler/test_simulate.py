"""The simulator itself, and what the policy looks like from outside."""

from collections.abc import Callable

import pytest

from scheduler.plan import Admit, StepPlan, Work
from scheduler.simulate import CostModel, Request, Simulation, ToyModel, ToyRunner
from scheduler.types import SamplingParams

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]
PARAMS = SamplingParams(4)


def test_a_step_costs_its_tokens_and_its_context() -> None:
    plan = StepPlan(1, [], [], [Work(0, 10, 1, [], True), Work(1, 0, 4, [], True)])
    assert CostModel(1.0, 0.1, 0.01).step_s(plan) == pytest.approx(1.0 + 0.5 + 0.01 * (11 + 16))


def test_the_toy_text_depends_on_every_token_and_on_the_seed() -> None:
    model = ToyModel(vocab_size=1 << 30)
    text, _ = model.generate([1, 2, 3], PARAMS, 99)
    assert model.generate([9, 2, 3], PARAMS, 99)[0] != text
    assert model.generate([1, 2, 3], SamplingParams(4, seed=1), 99)[0] != text


def test_the_toy_model_does_not_stop_before_min_tokens() -> None:
    every_other = tuple(range(0, 64, 2))
    for seed in range(20):
        text, finish = ToyModel().generate([1], SamplingParams(30, 5, stop_ids=every_other, seed=seed), 99)
        assert finish == "length" or len(text) > 5


def run(blocks: list[int], start: int) -> list[int]:
    """The token after the prompt 1, 2, 3, 4 when its first two are said to be in the first block."""
    runner = ToyRunner(ToyModel(1 << 30), block_size=2)
    runner.execute(StepPlan(1, [], [Admit(0, 0, PARAMS, [1, 2], 2, [2], 0)], [Work(0, 0, 2, [], False)]))
    runner.execute(StepPlan(2, [], [Admit(1, 1, PARAMS, [9, 9], 2, [3], 0)], [Work(1, 0, 2, [], False)]))
    admit = Admit(2, 2, PARAMS, [1, 2, 3, 4], 4, blocks, start)
    result = runner.execute(StepPlan(3, [], [admit], [Work(2, start, 4 - start, [], True)]))
    assert result is not None
    return result.tokens


def test_the_runner_reads_the_context_through_the_block_table() -> None:
    assert run([2, 4], start=2) == run([5, 4], start=0)
    assert run([3, 4], start=2) != run([5, 4], start=0)


def test_the_runner_refuses_to_read_what_nobody_wrote() -> None:
    with pytest.raises(KeyError):
        run([6, 4], start=2)


@pytest.mark.parametrize("block", [0, 1])
def test_the_runner_refuses_the_reserved_blocks(block: int) -> None:
    with pytest.raises(RuntimeError, match="reserved"):
        run([block, 4], start=0)


def test_latencies_are_what_the_cost_model_says(sim: Sim, ask: Ask) -> None:
    report = sim(cost=CostModel(0.5), max_seqs=1).run([ask(2, max_tokens=3), ask(2, max_tokens=1, at=1.0)])
    assert report.ttfts_s == [0.5, 1.0]
    assert report.traces[0].itls_s == [0.5, 0.5]
    assert (report.steps, report.seconds) == (4, 2.0)


def test_a_refused_request_is_counted(sim: Sim, ask: Ask) -> None:
    report = sim(max_waiting=1).run([ask(2), ask(2)])
    assert report.num_rejected == 1


def test_decodes_are_not_held_up_by_a_long_prompt(sim: Sim, ask: Ask) -> None:
    report = sim(cost=CostModel(0.0, token_s=0.001), max_model_len=600, num_blocks=200, max_step_tokens=32).run(
        [ask(4, max_tokens=40), ask(500, max_tokens=1, at=0.010)]
    )
    assert max(report.traces[0].itls_s) <= 0.032  # one step, whatever waits


def test_a_big_request_is_not_starved_by_small_ones(sim: Sim, ask: Ask) -> None:
    """It enters before all that came after it, and does not wait longer than the work before it takes."""
    small = [ask([i, i + 1], max_tokens=8, at=i * 0.002) for i in range(60)]
    big = ask(list(range(60)), max_tokens=2, at=0.041)
    world = sim(num_blocks=2 + 17, max_seqs=8)
    report = world.run([*small, big])
    traces = list(report.traces.values())
    (giant,) = [trace for trace in traces if len(trace.request.prompt) == 60]
    later = [trace for trace in traces if trace.arrived > giant.arrived]
    assert later
    assert all(trace.times[0] >= giant.times[0] for trace in later)


def test_caching_and_sharing_save_steps(sim: Sim, ask: Ask) -> None:
    requests = [ask(40, max_tokens=2, at=i * 0.1) for i in range(6)]
    options = {"max_step_tokens": 8, "cost": CostModel(0.001)}
    cold = sim(prefix_caching=False, **options).run(requests)
    warm = sim(**options).run(requests)
    assert warm.texts == cold.texts
    assert warm.steps < cold.steps / 2
