"""Grammars through the real model: answers keep to them, whatever else is asked for, and neighbours notice nothing."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from llguidance import LLMatcher

from engine.compiling import CompileQueue
from engine.constraint import Mask
from engine.grammar import Compiler
from engine.loaders.gguf import GgufCheckpoint
from engine.loop import Loop
from engine.sampler import sample
from gateway.engines.vocabulary import vocabulary_of
from gateway.model.load import load_served_model
from gateway.model.served import ServedModel
from scheduler.protocol import Outputs, Submit
from scheduler.types import SamplingParams, Sequence
from tests.engine.test_compiling import PATIENCE_S, Server
from tests.engine.test_sampler import VOCAB, random_logits, row
from tests.fixtures.harness import Harness, Loaded, load

QUESTION = "Who painted the Mona Lisa, and when was he born?"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2000},
        "fields": {"type": "array", "items": {"enum": ["art", "science", "other"]}, "maxItems": 3},
    },
    "required": ["name", "born", "fields"],
    "additionalProperties": False,
}
JSON = LLMatcher.grammar_from_json_schema(
    SCHEMA, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
)
LETTERS = LLMatcher.grammar_from_regex("[a-z]+")
COLOURS = 'start: "ultramarine" | "vermilion" | "burnt sienna"'


class Writer:
    """An engine that is asked questions."""

    def __init__(self, loaded: Loaded, served: ServedModel, compiler: Compiler, **sizes: Any) -> None:
        self.harness = Harness(loaded, **sizes)
        self.served = served
        self.compiler = compiler

    def encode(self, question: str = QUESTION) -> list[int]:
        assert self.served.chat_template is not None
        return self.served.chat_template.encode([{"role": "user", "content": question}])

    def ask(self, grammar: str | None, question: str = QUESTION, **params: Any) -> Sequence:
        defaults = {"max_tokens": 120, "temperature": 0.0, "stop_ids": self.served.eos_ids}
        seq = self.harness.submit(self.encode(question), grammar=grammar, **{**defaults, **params})
        if grammar is not None:
            self.harness.runner.matchers.assign(seq.id, self.compiler.compile(grammar))
        return seq

    def run(self) -> None:
        self.harness.run()

    def answer(self, seq: Sequence) -> str:
        return self.served.tokenizer.decode(seq.tokens[seq.prompt_len :])


@pytest.fixture(scope="module")
def writer(gguf_path: Path) -> Callable[..., Writer]:
    checkpoint, served = GgufCheckpoint(gguf_path), load_served_model(gguf_path, "default", 0)
    loaded = Loaded(checkpoint, load(checkpoint))
    compiler = Compiler(vocabulary_of(served), checkpoint.spec.vocab_size)
    return lambda **sizes: Writer(loaded, served, compiler, **sizes)


def check_json(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


def test_an_answer_keeps_to_its_schema_and_stops_at_its_end(writer: Callable[..., Writer]) -> None:
    asked = writer()
    seq = asked.ask(JSON)
    asked.run()
    check_json(asked.answer(seq))
    assert seq.finish == "stop"
    assert asked.answer(seq).endswith("}")


FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.3},
    {"top_k": 1000, "top_p": 0.9, "min_p": 0.01},
]


def test_it_does_at_a_high_temperature_whatever_the_filters(writer: Callable[..., Writer]) -> None:
    asked = writer()
    seqs = [asked.ask(JSON, temperature=1.5, seed=seed, **filters) for seed in range(4) for filters in FILTERS]
    asked.run()
    texts = [asked.answer(seq) for seq in seqs]
    for text in texts:
        check_json(text)
    assert {seq.finish for seq in seqs} == {"stop"}
    assert len(set(texts)) > len(FILTERS)


BESIDE: list[dict[str, Any]] = [
    {"repetition": 1.5, "frequency": 2.0, "presence": 2.0},
    {"min_tokens": 100},
    {"allowed_ids": (5000, 5001)},
    {"logit_bias": ((2, 100.0), (1000, 100.0))},
    {"logprobs": 3},
    {"stop_ids": ()},
]


def test_the_grammar_has_the_last_word(writer: Callable[..., Writer]) -> None:
    asked = writer()
    seqs = [(asked.ask(JSON, **params), asked.ask(COLOURS, **params)) for params in BESIDE]
    asked.run()
    for one, other in seqs:
        check_json(asked.answer(one))
        assert asked.answer(other) in ("ultramarine", "vermilion", "burnt sienna")
        assert (one.finish, other.finish) == ("stop", "stop")


def test_bad_words_are_avoided_where_the_grammar_leaves_a_choice(writer: Callable[..., Writer]) -> None:
    asked = writer()
    first = asked.ask(COLOURS)
    asked.run()
    begun = first.tokens[first.prompt_len]
    second = asked.ask(COLOURS, bad_words=((begun,),))
    asked.run()
    assert asked.answer(second) in ("ultramarine", "vermilion", "burnt sienna")
    assert begun not in second.tokens[second.prompt_len :]


def test_a_grammar_without_an_end_of_its_own_ends_where_the_model_ends_it(writer: Callable[..., Writer]) -> None:
    asked = writer()
    seq = asked.ask(LETTERS, "Say yes or no. Is the sky blue?", max_tokens=40, logit_bias=((2, 8.0),))
    asked.run()
    assert seq.finish == "stop"
    assert seq.tokens[-1] in asked.served.eos_ids
    assert re.fullmatch("[a-z]+", asked.answer(seq))


def test_max_tokens_cuts_an_answer(writer: Callable[..., Writer]) -> None:
    asked = writer()
    whole, cut = asked.ask(JSON), asked.ask(JSON, max_tokens=5)
    asked.run()
    assert (cut.finish, cut.num_generated) == ("length", 5)
    assert asked.answer(whole).startswith(asked.answer(cut))


def test_neighbours_notice_nothing(writer: Callable[..., Writer]) -> None:
    alone = writer()
    plain = [alone.ask(None, max_tokens=30), alone.ask(None, max_tokens=30, temperature=1.0, seed=3)]
    alone.run()
    crowd = writer()
    beside = crowd.ask(None, max_tokens=30)
    seqs = [crowd.ask(JSON), crowd.ask(COLOURS)]
    sampled = crowd.ask(None, max_tokens=30, temperature=1.0, seed=3)
    crowd.run()
    assert [beside.tokens, sampled.tokens] == [seq.tokens for seq in plain]
    check_json(crowd.answer(seqs[0]))


def test_logprobs_are_of_the_models_own_distribution(writer: Callable[..., Writer]) -> None:
    told = {}
    for grammar in (None, COLOURS):
        asked = writer()
        asked.ask(grammar, max_tokens=1, logprobs=5)
        plan = asked.harness.scheduler.plan()
        assert plan is not None
        (told[grammar],) = asked.harness.runner.execute(plan).logprobs
    free, bound = told[None], told[COLOURS]
    assert free is not None
    assert bound is not None
    assert (bound.top_ids, bound.top_logprobs) == (free.top_ids, free.top_logprobs)
    assert bound.logprob < free.logprob <= 0


def test_a_preempted_answer_goes_on_where_it_was(writer: Callable[..., Writer]) -> None:
    questions = [f"{QUESTION} Take {number}." for number in range(6)]
    texts = []
    for num_blocks in (400, 2 + 20):
        asked = writer(num_blocks=num_blocks)
        seqs = [asked.ask(JSON, question, temperature=1.2, seed=7) for question in questions]
        asked.run()
        texts.append([asked.answer(seq) for seq in seqs])
        preemptions = asked.harness.scheduler.stats().preemptions
    assert preemptions > 0
    assert texts[0] == texts[1]
    for text in texts[1]:
        check_json(text)


def test_a_matcher_that_breaks_ends_its_own_row(
    writer: Callable[..., Writer], caplog: pytest.LogCaptureFixture
) -> None:
    asked = writer()
    broken, sound, plain = asked.ask(JSON), asked.ask(JSON), asked.ask(None, max_tokens=5)
    astray = asked.compiler.compile(JSON)
    astray.consume_tokens(asked.served.tokenizer.encode("no JSON"))
    assert astray.is_error()
    asked.harness.runner.matchers.assign(broken.id, astray)
    asked.run()
    assert (broken.finish, broken.num_generated) == ("grammar", 0)
    assert (sound.finish, plain.finish) == ("stop", "length")
    check_json(asked.answer(sound))
    assert "cannot be followed" in caplog.text


def test_a_step_that_raises_leaves_nothing_behind(
    writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = writer()
    asked.ask(JSON)
    scheduler, runner = asked.harness.scheduler, asked.harness.runner
    plan = scheduler.plan()
    assert plan is not None
    with monkeypatch.context() as patched:
        patched.setattr(runner._model, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.execute(plan)
    scheduler.fail(plan)
    seq = asked.ask(JSON)
    asked.run()
    check_json(asked.answer(seq))


@pytest.fixture
def queue(writer: Callable[..., Writer]) -> Iterator[tuple[Writer, Server, Loop]]:
    asked, server = writer(), Server()
    vocab_size = asked.served.tokenizer.vocab_size
    grammars = CompileQueue(lambda told: Compiler(told, vocab_size).compile, server.wake, lambda: 0.0)
    loop = Loop(asked.harness.scheduler, asked.harness.runner, server, vocab_size, grammars)  # type: ignore[arg-type]
    yield asked, server, loop
    grammars.close()


def test_choices_of_one_request_all_keep_to_the_grammar(queue: tuple[Writer, Server, Loop]) -> None:
    """The whole way: taught, submitted, compiled, and three choices off one prompt."""
    asked, server, loop = queue
    params = SamplingParams(max_tokens=120, temperature=1.3, grammar=JSON, stop_ids=asked.served.eos_ids)
    server.inbox.append((1, vocabulary_of(asked.served)))  # type: ignore[arg-type]
    server.inbox.append((1, Submit([1, 2, 3], asked.encode(), params, [4, 5, 6])))
    loop.turn()
    assert server.woken.acquire(timeout=PATIENCE_S)
    while loop.turn():
        pass
    assert len(asked.harness.runner.matchers) == 0
    tokens: dict[int, list[int]] = {1: [], 2: [], 3: []}
    for output in server.outputs(1):
        tokens[output.seq_id] += output.tokens
    texts = [asked.served.tokenizer.decode(each) for each in tokens.values()]
    for text in texts:
        check_json(text)
    assert len(set(texts)) > 1
    ends = [output.finish for _, frame in server.sent if isinstance(frame, Outputs) for output in frame.outputs]
    assert ends.count("stop") == 3


@pytest.mark.parametrize("params", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("others", [0, 2])
def test_a_mask_that_leaves_one_token_leaves_it_to_every_way_of_drawing(params: dict[str, Any], others: int) -> None:
    masked = [row(**{"temperature": 2.0, "seed": seed, **params}) for seed in range(4)]
    plain = [row(temperature=1.0, seed=9)] * others
    ruled_out = torch.ones(len(masked), VOCAB, dtype=torch.bool)
    ruled_out[range(4), [7, 999, 0, 500]] = False
    logits = random_logits(len(masked) + others)
    free = sample(logits[4:].clone(), plain).tokens if others else []
    result = sample(logits, masked + plain, Mask(torch.arange(4), ruled_out))
    assert result.tokens == [7, 999, 0, 500, *free]
