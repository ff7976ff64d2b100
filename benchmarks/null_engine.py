"""An engine that computes nothing: every STEP_MS milliseconds one token for each sequence, over the real socket. A
gateway that is behind gets several steps merged, as from the real engine; with 0, a step waits until it has read the
one before. What a gateway costs is measured against it. Several gateways have one each.

    python -m benchmarks.null_engine STEP_MS    started by a gateway, in place of `python -m engine`
"""

from __future__ import annotations

import array
import fcntl
import os
import selectors
import socket
import sys
import termios
import time
from dataclasses import dataclass, field

import msgspec

from engine.backlog import Backlog
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
    backlog: Backlog = field(default_factory=Backlog)
    behind: bool = False  # something is in it

    def serve(self) -> None:
        splitter, selector = FrameSplitter(), selectors.DefaultSelector()
        selector.register(self.connection, selectors.EVENT_READ)
        next_at = time.monotonic()
        while True:
            wait_s = IDLE_S if not self.num_left else max(0.0, next_at - time.monotonic())
            wait_s = POLL_S if self.behind else wait_s
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
            self.flush()

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
        self.backlog.add(Outputs(outputs, [StepRecord("decode", num, num, self.step_s)], stats))
        self.behind = True

    def flush(self) -> None:
        """What the gateway is ready for."""
        while not self.step_s and self.is_unread():
            time.sleep(POLL_S)
        if self.behind and not self.is_unread():
            merged = self.backlog.take()
            assert merged is not None
            self.send(merged)
            self.behind = False

    def is_unread(self) -> bool:
        """The gateway has not taken all that was sent."""
        unread = array.array("i", [0])
        fcntl.ioctl(self.connection, termios.TIOCOUTQ, unread)
        return unread[0] > 0

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
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)  # open as long as the gateway lives
        while sys.stdin not in [key.fileobj for key, _ in selector.select()]:
            connection, _ = listener.accept()
            if os.fork() == 0:  # for each gateway a process of its own: this must not be what limits them
                engine = NullEngine(connection, step_s)
                engine.send(ready(config))
                engine.serve()
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
