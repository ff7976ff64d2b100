"""What answers took, of the last and of all."""

from __future__ import annotations

from dataclasses import dataclass, field

from chat.answer import Taken


@dataclass(slots=True)
class Stats:
    num_answers: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    last: Taken = field(default_factory=Taken)
    _ttft_s: float = 0.0
    _num_ttft: int = 0
    _decode_s: float = 0.0
    _decoded_tokens: int = 0  # without the first of each answer

    def add(self, taken: Taken) -> None:
        self.last = taken
        self.num_answers += 1
        self.prompt_tokens += taken.prompt_tokens
        self.output_tokens += taken.output_tokens
        if taken.ttft_s is not None:
            self._ttft_s += taken.ttft_s
            self._num_ttft += 1
        self._decode_s += taken.decode_s
        self._decoded_tokens += max(0, taken.output_tokens - 1)

    def lines(self) -> list[str]:
        if not self.num_answers:
            return ["no answer yet"]
        last = self.last
        cached = f" ({last.cached_tokens} cached)" if last.cached_tokens else ""
        about = "about " if last.is_counted_here else ""
        told = [f"last answer: {last.prompt_tokens or 'unknown'} prompt tokens{cached}"]
        told[0] += f", {about}{last.output_tokens} tokens"
        told[0] += _speed(last.ttft_s, last.output_tokens - 1, last.decode_s)
        mean = self._ttft_s / self._num_ttft if self._num_ttft else None
        told.append(f"all {self.num_answers} answers: {self.prompt_tokens} prompt tokens, {self.output_tokens} tokens")
        told[1] += _speed(mean, self._decoded_tokens, self._decode_s, "on average ")
        return told


def _speed(ttft_s: float | None, num_after_first: int, decode_s: float, how: str = "") -> str:
    first = f", the first {how}after {ttft_s * 1000:.0f} ms" if ttft_s is not None else ""
    rate = f", then {num_after_first / decode_s:.1f} tokens/s" if num_after_first > 0 and decode_s > 0 else ""
    return first + rate
