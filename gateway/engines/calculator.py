"""An engine whose sequences may use nanochat's calculator: an expression between <|python_start|> and <|python_end|> is
computed, and its result goes into the answer as if the model had written it, inside <|output_start|> <|output_end|>.

    generated        forced                           generated
    ... expr end  |  output_start result output_end  | ...
                  ^ the sequence ends here in the engine, and comes back under its id with all that is left of it

The engine behind knows nothing of it: it is asked to stop at <|python_end|>, and then to go on from prompt, answer and
result, most of which its prefix cache still has, as it goes on with an answer whose engine died. What is drawn is what
an answer in one piece would have had.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field

import msgspec

from gateway.engines.client import Death, EngineClient, EngineUnavailable, Replica, Sink
from gateway.tokenizer.base import Tokenizer
from gateway.tools.arithmetic import calculate
from scheduler.plan import TokenLogprob
from scheduler.protocol import EngineStats, Output, Ready, Submit
from scheduler.types import FinishReason, Rejected

FULL_WAIT_S = 30.0  # as long as an answer that has begun waits for a place in a full queue
RETRY_S = 0.1
CERTAIN = TokenLogprob(0.0, [], [])

log = logging.getLogger("headrace.calculator")


@dataclass(slots=True)
class _Sequence:
    request: Submit  # as it was asked for
    seed: int
    sink: Sink
    answer: list[int] = field(default_factory=list)  # forced tokens too
    block: int | None = None  # where in `answer` the expression begins; None: there is none
    continued: asyncio.Task[None] | None = None  # on its way back into the engine
    num_parts: int = 1

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self.request.params.max_tokens - len(self.answer)

    def note(self, tokens: list[int], start: int) -> None:
        for token in tokens:
            self.answer.append(token)
            if token == start:
                self.block = len(self.answer)

    def note_before(self, tokens: list[int], start: int, end: int) -> None:
        """What it had in an engine that is gone: a block in it may be open still."""
        self.note(tokens, start)
        if self.block is not None and end in self.answer[self.block :]:
            self.block = None


class CalculatingEngine:
    """An EngineClient in front of another one."""

    def __init__(
        self, engine: EngineClient, tokenizer: Tokenizer, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """The tokenizer has nanochat's control tokens."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._sleep = sleep
        special = tokenizer.special_ids
        self._start, self._end = special["<|python_start|>"], special["<|python_end|>"]
        self._output_start, self._output_end = special["<|output_start|>"], special["<|output_end|>"]
        self._sequences: dict[int, _Sequence] = {}

    @property
    def ready(self) -> Ready | None:
        return self._engine.ready

    @property
    def is_paused(self) -> bool:
        return self._engine.is_paused

    @property
    def replicas(self) -> Sequence[Replica]:
        return self._engine.replicas

    def replica_of(self, seq_id: int) -> int:
        return self._engine.replica_of(seq_id)

    def stats_of(self, seq_id: int) -> EngineStats | None:
        return self._engine.stats_of(seq_id)

    @property
    def num_held(self) -> int:
        """Sequences that may still calculate."""
        return len(self._sequences)

    def new_ids(self, count: int) -> list[int]:
        return self._engine.new_ids(count)

    async def available(self) -> None:
        await self._engine.available()

    async def submit(self, request: Submit, sink: Sink) -> None:
        params = request.params
        if params.grammar is not None or self._end in params.stop_ids:  # an answer of a fixed form; or its end is here
            return await self._engine.submit(request, sink)
        generated: list[list[int]] = request.generated or [[]] * len(request.seq_ids)
        for seq_id, seed, tokens in zip(request.seq_ids, request.seeds, generated, strict=True):
            self._sequences[seq_id] = sequence = _Sequence(request, seed, sink)
            sequence.note_before(tokens, self._start, self._end)
        try:
            await self._engine.submit(self._stopping(request), _Ears(self, sink))
        except BaseException:
            self._forget(request.seq_ids)
            raise

    def _stopping(self, request: Submit) -> Submit:
        params = request.params
        stops = msgspec.structs.replace(params, stop_ids=(*params.stop_ids, self._end))
        return msgspec.structs.replace(request, params=stops)

    def abort(self, seq_ids: list[int]) -> None:
        self._forget(seq_ids)
        self._engine.abort(seq_ids)

    def _forget(self, seq_ids: Iterable[int]) -> None:
        for seq_id in seq_ids:
            sequence = self._sequences.pop(seq_id, None)
            if sequence is not None and sequence.continued is not None:
                sequence.continued.cancel()

    # outputs

    def deliver(self, output: Output) -> None:
        """Of a sequence that came through here."""
        sequence = self._sequences.get(output.seq_id)
        if sequence is None:
            return
        sequence.note(output.tokens, self._start)
        if sequence.num_parts > 1:
            output = msgspec.structs.replace(output, first=None)  # that was told with the first part
        if output.finish != "stop" or output.tokens[-1:] != [self._end]:
            if output.finish is not None:
                del self._sequences[output.seq_id]
            sequence.sink.deliver(output)
            return
        sequence.sink.deliver(msgspec.structs.replace(output, finish=None))
        if output.seq_id in self._sequences:  # and not aborted for what it was told
            self._go_on(output.seq_id, sequence)

    def _go_on(self, seq_id: int, sequence: _Sequence) -> None:
        ready = self.ready
        context = len(sequence.request.prompt) + len(sequence.answer)
        room = min(sequence.room, 0 if ready is None else ready.max_model_len - context)
        forced = self._result(sequence)[: max(room, 0)]
        sequence.block = None
        sequence.answer += forced
        is_over = len(forced) >= room
        if forced or is_over:
            self._tell(seq_id, sequence, forced, "length" if is_over else None)
        if not is_over and seq_id in self._sequences:
            sequence.num_parts += 1
            sequence.continued = asyncio.create_task(self._continue(seq_id, sequence))

    def _result(self, sequence: _Sequence) -> list[int]:
        """What is put behind the block that has just ended: nothing, where there is no result."""
        expression = [] if sequence.block is None else sequence.answer[sequence.block : -1]
        result = calculate(self._tokenizer.decode(expression, skip_special=False)) if expression else None
        if result is None:
            return []
        return [self._output_start, *self._tokenizer.encode(result), self._output_end]

    def _tell(self, seq_id: int, sequence: _Sequence, tokens: list[int], finish: FinishReason | None) -> None:
        if finish is not None:
            del self._sequences[seq_id]
        wants = sequence.request.params.logprobs is not None
        sequence.sink.deliver(Output(seq_id, tokens, finish, [CERTAIN] * len(tokens) if wants else None))

    async def _continue(self, seq_id: int, sequence: _Sequence) -> None:
        request = self._stopping(_rest_of(seq_id, sequence))
        try:
            await self._submit_patiently(request, _Ears(self, sequence.sink))
        except EngineUnavailable as error:
            sequence.continued = None
            self.fail(sequence.sink, _gone(error), {seq_id})
        except Rejected as refusal:
            log.warning("an answer that has used its calculator cannot go on: %s", refusal.message)
            self._give_up(seq_id, sequence)
        except Exception:  # nobody waits for this task, but somebody for the answer
            log.exception("an answer that has used its calculator cannot go on")
            self._give_up(seq_id, sequence)
        finally:
            sequence.continued = None

    def _give_up(self, seq_id: int, sequence: _Sequence) -> None:
        if seq_id in self._sequences:
            self._tell(seq_id, sequence, [], "error")

    async def _submit_patiently(self, request: Submit, sink: Sink) -> None:
        for _ in range(round(FULL_WAIT_S / RETRY_S)):
            try:
                return await self._engine.submit(request, sink)
            except Rejected as refusal:
                if refusal.code != "queue_full":
                    raise
            await self._sleep(RETRY_S)
        return await self._engine.submit(request, sink)

    def fail(self, sink: Sink, death: Death, seq_ids: Set[int]) -> None:
        """Who it is told to gives them to another engine."""
        self._forget(seq_ids)
        sink.fail(death, seq_ids)


def _rest_of(seq_id: int, sequence: _Sequence) -> Submit:
    asked = sequence.request
    rest = msgspec.structs.replace(asked.params, prompt_logprobs=None, embed=False)
    return msgspec.structs.replace(
        asked, seq_ids=[seq_id], params=rest, seeds=[sequence.seed], max_wait_s=None, generated=[sequence.answer.copy()]
    )


def _gone(error: EngineUnavailable) -> Death:
    """Of an engine that had nothing of this request."""
    death = Death(error.message, 0, from_outside=True)
    death.explained.set()
    return death


@dataclass(frozen=True, slots=True)
class _Ears:
    """The Sink that the engine behind is given."""

    engine: CalculatingEngine
    sink: Sink

    def deliver(self, output: Output) -> None:
        self.engine.deliver(output)

    def fail(self, death: Death, seq_ids: Set[int]) -> None:
        self.engine.fail(self.sink, death, seq_ids)
