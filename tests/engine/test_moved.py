"""Sequences that come with tokens of an engine that is gone say what that one would have said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.grammar import Compiler
from engine.loaders.gguf import GgufCheckpoint
from gateway.engines.vocabulary import vocabulary_of
from gateway.model.load import load_served_model
from gateway.model.served import ServedModel
from scheduler.types import Sequence
from tests.fixtures.harness import LIMITS, Harness, Loaded, load

NUM_TOKENS = 25
CUTS = range(1, NUM_TOKENS, 4)
GRAMMAR = 'start: /\\[("[a-z ]{5,30}", )+"end"\\]/'
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0, "seed": 12345},
    "filtered": {"temperature": 1.3, "seed": 99, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    "penalties": {"temperature": 0.0, "presence": 0.7, "frequency": 0.9, "repetition": 1.3},
    "logprobs": {"temperature": 1.0, "seed": 7, "logprobs": 3},
    "biased": {"temperature": 0.0, "logit_bias": ((260, 4.0), (28, 2.0))},
    "bad words": {"temperature": 0.0, "bad_words": ((28, 260), (30,))},
    "minimum": {"temperature": 1.0, "seed": 3, "min_tokens": 20, "stop_ids": tuple(range(2000))},
    "grammar": {"temperature": 1.0, "seed": 5, "grammar": GRAMMAR},
}


@pytest.fixture(scope="module")
def served(gguf_path: Path) -> ServedModel:
    return load_served_model(gguf_path, "default", 0)


@pytest.fixture(scope="module")
def model(gguf_path: Path) -> Loaded:
    checkpoint = GgufCheckpoint(gguf_path)
    return Loaded(checkpoint, load(checkpoint))


class Engine(Harness):
    def __init__(self, model: Loaded, served: ServedModel) -> None:
        super().__init__(model, replace(LIMITS, max_step_tokens=512))
        self.compiler = Compiler(vocabulary_of(served), model.checkpoint.spec.vocab_size)
        self.prompt = served.tokenizer.encode("Once upon a time there was a king who")

    def ask(self, kind: str, generated: list[int] | None = None) -> Sequence:
        params = {"max_tokens": NUM_TOKENS, **KINDS[kind]}
        seq = self.submit(self.prompt, generated=generated, **params)
        if "grammar" in params:
            self.runner.matchers.assign(seq.id, self.compiler.compile(params["grammar"]))
        return seq


def test_every_kind_of_sampling_goes_on_as_it_was_wherever_it_was_cut(model: Loaded, served: ServedModel) -> None:
    calm, after = Engine(model, served), Engine(model, served)
    whole = {kind: calm.ask(kind) for kind in KINDS}
    calm.run()
    assert len({tuple(seq.tokens) for seq in whole.values()}) == len(KINDS)
    cut = {
        (kind, at): after.ask(kind, seq.tokens[seq.prompt_len :][:at])
        for kind, seq in whole.items()
        for at in CUTS
        if at < seq.num_generated
    }
    after.run()
    for (kind, at), seq in cut.items():
        assert (kind, at, seq.tokens, seq.finish) == (kind, at, whole[kind].tokens, whole[kind].finish)
    told = calm.logprobs[whole["logprobs"].id]
    assert len(told) == NUM_TOKENS
    for at in CUTS:
        again = after.logprobs[cut["logprobs", at].id]
        assert len(again) == NUM_TOKENS - at
        # A token that is computed with others has other last bits than one that is computed alone.
        for one, other in zip(told[at:], again, strict=True):
            assert other.logprob == pytest.approx(one.logprob, abs=1e-3) and other.top_ids == one.top_ids
