"""An engine that computes nothing: every STEP_MS milliseconds one token for each sequence, in one frame, over the real
socket. With 0, each step as soon as the gateway has read the one before. What a gateway costs is measured against it.

    python -m benchmarks.null_engine STEP_MS    started by a gateway, in place of `python -m engine`
"""

from __future__ import annotations

import array
import fcntl
import selectors
import socket
import sys
import termios
import threading
import time
from dataclasses import dataclass, field

import msgspec

from scheduler.protocol import (
    Abort,
    Accepted,
    EngineConfig,
    EngineStats,
    FirstToken,
    FrameSplitter,
    FromEngine,
    Output,
    Outputs,
    Ready,
    StepRecord,
    Submit,
    ToEngine,
    Vocabulary,
    encode_frame,
    to_engine_decoder,
)

VOCAB_SIZE = 49_152
IDLE_S = 1.0
POLL_S = 1e-4


@dataclass(slots=True)
class NullEngine:
    connection: socket.socket
    step_s: float
    words: list[int] = field(default_factory=list)  # ids that stand for a space and some letters
    num_left: dict[int, int] = field(default_factory=dict)  # sequence -> tokens to come
    fresh: set[int] = field(default_factory=set)
    steps: int = 0

    def serve(self) -> None:
        splitter, selector = FrameSplitter(), selectors.DefaultSelector()
        selector.register(self.connection, selectors.EVENT_READ)
        next_at = time.monotonic()
        while True:
            wait_s = max(0.0, next_at - time.monotonic()) if self.num_left else IDLE_S
            if selector.select(wait_s):
                data = self.connection.recv(1 << 18)
                if not data:
                    return
                for body in splitter.feed(data):
                    self.handle(to_engine_decoder.decode(body))
            now = time.monotonic()
            if self.num_left and now >= next_at:
                self.step()
                next_at = max(next_at + self.step_s, now)
                self.wait_read()

    def handle(self, message: ToEngine) -> None:
        match message:
            case Submit():
                self.send(Accepted(message.seq_ids))
                self.num_left.update(dict.fromkeys(message.seq_ids, message.params.max_tokens))
                self.fresh.update(message.seq_ids)
            case Abort():
                for seq_id in message.seq_ids:
                    self.num_left.pop(seq_id, None)
            case Vocabulary():
                spoken = ((id, token) for id, token in enumerate(message.tokens) if len(token) > 2)
                self.words = [id for id, token in spoken if token[:1] == b" " and token[1:].isalpha()]

    def step(self) -> None:
        self.steps += 1
        outputs = []
        for seq_id, left in list(self.num_left.items()):
            first = FirstToken(0.001, 0.001, 0) if seq_id in self.fresh else None
            token = self.words[(seq_id * 7919 + left * 104_729) % len(self.words)]
            outputs.append(Output(seq_id, [token], "length" if left == 1 else None, None, first))
            if left == 1:
                del self.num_left[seq_id]
            else:
                self.num_left[seq_id] = left - 1
        self.fresh.clear()
        num = len(outputs)
        stats = EngineStats(num, 0, 0, num * 8, 0, 1 << 16, self.steps, 0, 0, 0, 0, 0)
        self.send(Outputs(outputs, [StepRecord("decode", num, num, self.step_s)], stats))

    def wait_read(self) -> None:
        """Until the gateway has taken all that was sent: frames that pile up would be answered with one event."""
        unread = array.array("i", [1])
        while fcntl.ioctl(self.connection, termios.TIOCOUTQ, unread) == 0 and unread[0]:
            time.sleep(POLL_S)

    def send(self, message: FromEngine) -> None:
        self.connection.sendall(encode_frame(message))


def ready(config: EngineConfig) -> Ready:
    return Ready(
        device="none",
        dtype="bfloat16",
        attention="none",
        architecture="Null",
        vocab_size=VOCAB_SIZE,
        max_model_len=config.max_model_len or 8192,
        block_size=config.block_size,
        num_blocks=1 << 16,
        max_seqs=config.max_seqs,
        max_step_tokens=8192,
        num_parameters=0,
        weights_bytes=0,
        kv_cache_bytes=0,
        phases_s=[],
    )


def main() -> None:
    step_s = float(sys.argv[1]) / 1e3
    config = msgspec.json.decode(sys.stdin.readline(), type=EngineConfig)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(config.socket_path)
    listener.listen()
    connection, _ = listener.accept()
    engine = NullEngine(connection, step_s)
    engine.send(ready(config))
    threading.Thread(target=engine.serve, daemon=True).start()
    sys.stdin.read()  # open as long as the gateway lives


if __name__ == "__main__":
    main()
