"""From a grammar in llguidance's form to a matcher that knows which token ids may come next."""

from __future__ import annotations

import json
from typing import Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from scheduler.protocol import Vocabulary
from scheduler.types import MAX_GRAMMAR_SYMBOLS, MAX_LEXER_STATES, Rejected

MAX_GRAMMAR_CHARS = 1 << 19  # compiling can take time quadratic in it: some seconds at most
MAX_ERROR_CHARS = 1000
LIMITS = LLParserLimits(max_grammar_size=MAX_GRAMMAR_SYMBOLS, max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
# llguidance would spell a run of forced bytes with a tokenizer. The engine has none: the model chooses how to spell.
NO_FORCING = '%llguidance {"no_forcing": true}'


class Matcher(Protocol):
    """Where one sequence stands in its grammar: what is used of llguidance's LLMatcher."""

    def deep_copy(self) -> Matcher: ...
    def consume_tokens(self, sampled_tokens: list[int]) -> bool: ...
    def is_stopped(self) -> bool: ...
    def is_error(self) -> bool: ...
    def get_error(self) -> str: ...


class Compiler:
    """For one vocabulary, on any thread."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        """Takes a fraction of a second. Raises ValueError where the vocabulary is not that of the model."""
        self._tokenizer = _tokenizer(vocabulary, vocab_size)

    def compile(self, grammar: str) -> Matcher:
        """Raises Rejected: bad_grammar, in llguidance's words."""
        if len(grammar) > MAX_GRAMMAR_CHARS:
            message = f"the grammar has {len(grammar)} characters, more than {MAX_GRAMMAR_CHARS}"
            raise Rejected("bad_grammar", message)
        matcher = LLMatcher(self._tokenizer, _without_forcing(grammar), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise Rejected("bad_grammar", matcher.get_error().strip()[:MAX_ERROR_CHARS])
        return matcher


class Matchers:
    """The compiled grammars of live sequences. Kept until they end: a preemption must not need the compiler."""

    def __init__(self) -> None:
        self._by_seq: dict[int, Matcher] = {}

    def __len__(self) -> int:
        return len(self._by_seq)

    def assign(self, seq_id: int, matcher: Matcher) -> None:
        self._by_seq[seq_id] = matcher

    def forget(self, seq_id: int) -> None:
        self._by_seq.pop(seq_id, None)

    def start(self, seq_id: int, generated: list[int]) -> Matcher:
        """A matcher of its own, after what it has generated before a preemption."""
        matcher = self._by_seq[seq_id].deep_copy()
        if generated:
            matcher.consume_tokens(generated)
        return matcher


class _TokenTable:
    """The shape in which llguidance takes a vocabulary."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_ids: list[int], eos_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_id

    def __call__(self, text: str) -> list[int]:
        raise RuntimeError("grammars are compiled without forcing, so nothing is to be tokenized")


def _tokenizer(vocabulary: Vocabulary, vocab_size: int) -> LLTokenizer:
    tokens, eos_ids = vocabulary.tokens, vocabulary.eos_ids
    special_ids = sorted({*vocabulary.special_ids, *eos_ids})
    if not eos_ids:
        raise ValueError("the vocabulary has no token that ends an answer")
    if len(tokens) > vocab_size or not 0 <= special_ids[0] <= special_ids[-1] < len(tokens):
        raise ValueError(f"{len(tokens)} tokens with special ids up to {special_ids[-1]} are not those of the model")
    padded = tokens + [b""] * (vocab_size - len(tokens))  # ids of no bytes are never allowed
    table = _TokenTable(padded, special_ids, eos_ids[0])
    return LLTokenizer(table, eos_token=eos_ids)  # type: ignore[arg-type]


def _without_forcing(grammar: str) -> str:
    """Either Lark, or JSON with a list of grammars, of which one may speak for all."""
    if not grammar.lstrip().startswith("{"):
        return f"{grammar}\n{NO_FORCING}"
    try:
        parsed = json.loads(grammar)
        first, *others = parsed["grammars"]
        parsed["grammars"] = [first, *others, {"lark_grammar": f'{NO_FORCING}\nstart: ""'}]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Rejected("bad_grammar", "the grammar is no object that lists its grammars") from None
    return json.dumps(parsed)
