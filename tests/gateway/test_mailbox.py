"""What is unread is merged, bounded, and followed by the error that ended it."""

import pytest

from gateway.answers.choice import Delta, Mark
from gateway.answers.mailbox import Mailbox, SlowReader
from gateway.errors import ApiError
from tests.fixtures.fakes import logprob_of


def mark(token: int) -> Mark:
    return Mark(token, 0, 0, logprob_of(token, 0, 2))


async def test_deltas_of_a_choice_are_merged_and_choices_kept_apart() -> None:
    mailbox = Mailbox()
    for delta in (Delta(1, "a", marks=[mark(1)]), Delta(0, "x"), Delta(1, "b", marks=[mark(2)], finish="stop")):
        mailbox.put(delta)
    assert await mailbox.take() == [Delta(1, "ab", marks=[mark(1), mark(2)], finish="stop"), Delta(0, "x")]


async def test_what_was_taken_does_not_come_again() -> None:
    mailbox = Mailbox()
    mailbox.put(Delta(0, "a"))
    await mailbox.take()
    mailbox.put(Delta(0, "b"))
    assert await mailbox.take() == [Delta(0, "b")]


async def test_the_error_comes_after_what_was_unread() -> None:
    mailbox = Mailbox()
    mailbox.put(Delta(0, "a"))
    mailbox.fail(ApiError(500, "first"))
    mailbox.fail(ApiError(500, "second"))
    assert await mailbox.take() == [Delta(0, "a")]
    for _ in range(2):
        with pytest.raises(ApiError, match="first"):
            await mailbox.take()


def test_the_cap_counts_text_and_logprobs_of_all_choices() -> None:
    mailbox = Mailbox(max_bytes=200)
    mailbox.put(Delta(0, "x" * 100))
    mailbox.put(Delta(1, "x" * 100))
    with pytest.raises(SlowReader):
        mailbox.put(Delta(1, "", marks=[mark(1)]))


async def test_without_a_cap_everything_is_kept() -> None:
    mailbox = Mailbox()
    for _ in range(10):
        mailbox.put(Delta(0, "x" * 100_000))
    assert await mailbox.take() == [Delta(0, "x" * 1_000_000)]
