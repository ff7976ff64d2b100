"""What a request rules out, one row of logits at a time."""

from typing import Any

import pytest
import torch

from engine.sampler import needs_processing, process, sample
from tests.engine.test_sampler import VOCAB, random_logits, row


def drawn(generated: list[int], **params: Any) -> set[int]:
    """Every token that a hot row draws at this place, with its prompt [1, 2, 3]."""
    logits = random_logits(1).repeat(200, 1)
    rows = [row(generated=generated, temperature=5.0, seed=seed, **params) for seed in range(200)]
    return set(sample(logits, rows).tokens)


def best(generated: list[int], **params: Any) -> int:
    """Greedy, where token 7 would come first, then 8, then 9."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 7:10] = torch.tensor([9.0, 8.0, 7.0])
    return sample(logits, [row(generated=generated, temperature=0.0, **params)]).tokens[0]


def test_only_allowed_ids_are_drawn() -> None:
    assert drawn([], allowed_ids=(4, 400, 999)) == {4, 400, 999}


@pytest.mark.parametrize("filters", [{"top_k": 100}, {"top_p": 0.9999}, {"min_p": 1e-4}])
def test_also_where_filters_would_leave_more(filters: dict[str, float]) -> None:
    assert drawn([], allowed_ids=(4, 400, 999), **filters) <= {4, 400, 999}


def test_a_word_of_one_token_is_never_drawn() -> None:
    assert best([], bad_words=((7,),)) == 8
    assert best([7, 7], bad_words=((7,), (8,))) == 9


@pytest.mark.parametrize(
    ("generated", "token"),
    [([], 7), ([5], 7), ([5, 6], 8), ([5, 6, 6], 7), ([6], 7), ([6, 5, 6], 8)],
)
def test_a_longer_word_is_not_completed(generated: list[int], token: int) -> None:
    assert best(generated, bad_words=((5, 6, 7),)) == token


def test_the_prompt_is_no_part_of_a_word() -> None:
    assert best([], bad_words=((3, 7),)) == 7
    assert best([3], bad_words=((3, 7),)) == 8


def test_an_early_end_is_ruled_out_until_enough_is_generated() -> None:
    assert best([1], min_tokens=2, stop_ids=(7, 8)) == 9
    assert best([1, 1], min_tokens=2, stop_ids=(7, 8)) == 7


def test_a_row_always_has_a_token_left() -> None:
    """Of those that are allowed, if all of them are ruled out."""
    assert best([], allowed_ids=(7, 8), bad_words=((7,), (8,))) in (7, 8)
    assert best([], allowed_ids=(7,), min_tokens=5, stop_ids=(7,)) == 7


def test_a_bias_does_not_bring_back_what_is_ruled_out() -> None:
    assert best([], bad_words=((7,),), logit_bias=((7, 100.0),)) == 8


def test_the_logits_of_the_rest_stay_as_they_are() -> None:
    logits = random_logits(1)[0]
    kept = process(logits, row(bad_words=((5,),), allowed_ids=(4, 5, 6)))
    assert torch.equal(kept[[4, 6]], logits[[4, 6]])
    assert not needs_processing(row(stop_ids=(3,)))
