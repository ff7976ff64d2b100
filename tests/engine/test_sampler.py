"""The sampler against definitions written out one row at a time."""

import math

import pytest
import torch

from engine import noise, sampler
from engine.rows import PenaltyState, Row, RowTable
from scheduler.plan import Admit
from scheduler.types import SamplingParams

CPU = torch.device("cpu")
VOCAB = 1000


def row(prompt: list[int] | None = None, generated: list[int] | None = None, **params: object) -> Row:
    prompt, generated = prompt or [1, 2, 3], generated or []
    table = RowTable(1, 4, VOCAB, CPU)
    sampling = SamplingParams(max_tokens=9, **params)  # type: ignore[arg-type]
    table.admit(Admit(0, 0, sampling, prompt + generated, len(prompt), [], 0))
    return table[0]


def random_logits(rows: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def kept_by_definition(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Most likely first; top_k of them; of these renormalised, as few as reach top_p; of these, min_p of the best."""
    ids = sorted(range(len(logits)), key=lambda i: (-logits[i].item(), i))
    ids = ids[:top_k] if top_k else ids
    weights = [math.exp(logits[i].item() - logits[ids[0]].item()) for i in ids]
    total, before, kept = sum(weights), 0.0, set()
    for token, weight in zip(ids, weights, strict=True):
        if (before / total < top_p or top_p >= 1) and weight >= min_p * weights[0]:
            kept.add(token)
        before += weight
    return kept


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[:, [7, 9]] = 5.0
    assert sampler.sample(logits, [row(temperature=0), row(temperature=0)]).tokens == [7, 7]


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(1, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.5, 0.0), (0, 0.99, 0.0), (0, 1.0, 0.1), (40, 0.9, 0.02), (0, 0.9999, 1e-4)],
)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_filters_keep_what_their_definition_keeps(top_k: int, top_p: float, min_p: float, temperature: float) -> None:
    """All draws over many positions come from the kept set, and the whole draw is Gumbel-max over it."""
    logits = random_logits(1)
    kept = sorted(kept_by_definition(logits[0] / temperature, top_k, top_p, min_p))
    for position in range(3, 40):
        one = row(generated=[0] * position, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=11)
        keys = noise.row_keys([11], [3 + position], CPU)
        scores = logits[0, kept] / temperature + noise.gumbel(torch.tensor(kept), keys)[0]
        assert sampler.sample(logits.clone(), [one]).tokens == [kept[int(scores.argmax())]]


def test_filters_that_keep_everything_draw_as_no_filter_does() -> None:
    logits = random_logits(1)
    plain, filtered = row(seed=3, temperature=1.0), row(seed=3, temperature=1.0, min_p=1e-30)
    assert sampler.is_filtered(filtered.params)
    assert not sampler.is_filtered(plain.params)
    assert sampler.sample(logits.clone(), [plain]).tokens == sampler.sample(logits.clone(), [filtered]).tokens


def test_a_row_is_sampled_alike_alone_and_among_neighbours() -> None:
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.7, "top_p": 0.9, "seed": 6},
        {"temperature": 1.3, "top_k": 3, "seed": 7},
        {"temperature": 1.0, "min_p": 0.2, "presence": 1.0, "frequency": 0.5, "seed": 8},
        {"temperature": 0.0, "repetition": 1.5, "logit_bias": ((4, 9.0),), "logprobs": 2},
        {"temperature": 2.0, "top_p": 0.9999, "seed": 9},
    ]
    rows = [row(generated=[5, 5, 9], **kind) for kind in kinds]
    logits = random_logits(len(rows))
    together = sampler.sample(logits.clone(), rows)
    alone = [sampler.sample(logits[i : i + 1].clone(), [one]) for i, one in enumerate(rows)]
    assert together.tokens == [result.tokens[0] for result in alone]
    assert together.logprobs == [result.logprobs[0] for result in alone]


def test_penalties_follow_their_definition() -> None:
    logits = random_logits(1)[0]
    prompt, generated = [1, 2, 2], [2, 7, 7]
    params = SamplingParams(max_tokens=9, repetition=1.3, frequency=0.4, presence=0.9)
    got = PenaltyState(prompt, generated, VOCAB, CPU).apply(logits, params)
    for token in range(20):
        expected = logits[token].item()
        if token in prompt + generated:
            expected = expected / 1.3 if expected > 0 else expected * 1.3
        expected -= 0.4 * generated.count(token) + 0.9 * (token in generated)
        assert got[token].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_penalties_count_tokens_as_they_come() -> None:
    table = RowTable(1, 4, VOCAB, CPU)
    table.admit(Admit(0, 0, SamplingParams(max_tokens=9, frequency=2.0), [1, 2], 2, [], 0))
    table.append(0, 7)
    table.append(0, 7)
    flat = sampler.process(torch.zeros(VOCAB), table[0])
    assert flat[7] == -4.0
    assert flat.count_nonzero() == 1


def test_logit_bias_can_force_and_forbid() -> None:
    logits = random_logits(2)
    best = int(logits[1].argmax())
    rows = [row(temperature=0, logit_bias=((17, 100.0),)), row(temperature=0, logit_bias=((best, -100.0),))]
    tokens = sampler.sample(logits, rows).tokens
    assert tokens[0] == 17
    assert tokens[1] != best


@pytest.mark.parametrize(("generated", "stops"), [(0, False), (1, False), (2, True)])
def test_stop_ids_are_ruled_out_until_min_tokens(generated: int, stops: bool) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 42] = 50.0
    one = row(generated=[8] * generated, temperature=0, min_tokens=2, stop_ids=(42,))
    assert (sampler.sample(logits, [one]).tokens == [42]) is stops


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = random_logits(1)
    expected = logits[0].log_softmax(dim=0)
    one = row(temperature=0.5, top_k=3, logit_bias=((17, 100.0),), logprobs=4, seed=1)
    result = sampler.sample(logits.clone(), [one])
    told = result.logprobs[0]
    assert told is not None
    assert result.tokens == [17]
    assert told.logprob == pytest.approx(expected[17].item(), abs=1e-5)
    assert told.top_ids == expected.topk(4).indices.tolist()
    assert told.top_logprobs == pytest.approx(expected.topk(4).values.tolist(), abs=1e-5)


def test_logprobs_zero_tells_the_chosen_token_only() -> None:
    result = sampler.sample(random_logits(1), [row(temperature=0, logprobs=0)])
    assert result.logprobs[0] is not None
    assert result.logprobs[0].top_ids == []
