"""The wire between gateway and engine: frames of 4 bytes little-endian length + msgpack, arrays instead of maps.

Text never crosses: token ids in, token ids out. Sequence ids are chosen by the gateway, unique on its connection.
A connection sees: Progress*, then Ready or Fatal; then, for each Submit, Accepted or Rejection; then Outputs,
and for a Watch also Snapshots. Pulses come in between.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from scheduler.plan import Delays, PromptResult, TokenLogprob
from scheduler.types import FinishReason, SamplingParams

MAX_FRAME_BYTES = 64 << 20
LENGTH_BYTES = 4
MAX_SNAPSHOT_ROWS = 256
MAX_SNAPSHOT_CELLS = 1024
ENGINE_NAME = "headrace-engine"  # that the certificate of every engine has, whatever its machine is called
GATEWAY_NAME = "headrace-gateway"
# Of a TCP connection on which nothing is said: asked after so many seconds, then so often, until it is given up.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one side of a connection between machines, as PEM texts. Each side shows its certificate, and asks the other
    for one that the authority has signed."""

    certificate: str
    key: str
    authority: str  # its certificate

    def __repr__(self) -> str:
        return "Credentials(...)"  # no key in a log


class Tcp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an engine listens for gateways of other machines, or they find it: TLS with certificates both ways."""

    host: str  # to listen on; empty: every interface
    port: int  # to listen on; 0: chosen by the system, and told by a LogLine
    credentials: Credentials


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an engine process is told. JSON on its standard input, which stays open as long as its parent lives."""

    model: str  # path of a .gguf file, of a folder with config.json, or of a checkpoint of rosellm or nanochat
    format: Literal["gguf", "safetensors", "dummy", "rosellm", "nanochat"]  # dummy: seeded weights for a config.json
    socket_path: str  # its own, new at each start; files beside it begin with the same name
    tcp: Tcp | None = None  # listen there, and not at socket_path
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int = 0  # 0: chosen by the engine
    tp: int = 1  # ranks of the tensor-parallel group: as many GPUs from `device` on, or processes on CPUs
    attention: Literal["auto", "reference", "sdpa", "numba", "triton"] = "auto"
    block_size: int = 16
    kv_cache_bytes: int = 0  # of each rank; 0: chosen by the engine from the memory that is free
    gpu_memory_fraction: float = 0.9
    max_model_len: int = 0  # 0: the model's own context, or less where the cache holds less
    max_seqs: int = 0  # 0: chosen by the engine
    max_step_tokens: int = 0  # 0: chosen by the engine
    mixed_prompt_tokens: int = 0  # 0: chosen by the engine
    max_waiting: int = 1024
    max_waiting_tokens: int = 1 << 20
    prefix_caching: bool = True
    fairness: bool = True  # between tenants
    seed: int = 0  # of dummy weights
    profiling: bool = False  # a Profile may be asked for
    sharers: int = 1  # engines that share the cores and the memory of this machine, where they run on its CPU


class LogLine(msgspec.Struct, frozen=True):
    """One of an engine's log: a line of JSON on its standard error, where other programs' words may stand too."""

    level: str
    logger: str
    message: str
    exception: str | None = None  # with its traceback
    port: int | None = None  # at which it listens now


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """One prompt, one sequence a choice. The first is the leader; the others share its full prompt blocks."""

    seq_ids: list[int]
    prompt: list[int]
    params: SamplingParams
    seeds: list[int]  # one a choice; replaces params.seed
    priority: int = 0
    max_wait_s: float | None = None  # queued longer: finish "expired"
    salt: bytes = b""
    generated: list[list[int]] = []  # of each choice, by an engine that is gone: it goes on from there; empty: none
    tenant: int = 0  # for whom, as a number that tells no more; 0: nobody in particular


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """Forget these sequences, whatever their phase; nothing more is sent for them. Unknown ids are ignored."""

    seq_ids: list[int]


class Vocabulary(msgspec.Struct, frozen=True, array_like=True, tag="vocabulary"):
    """What each token id stands for: grammars are about bytes. Once a connection, before the first grammar."""

    tokens: list[bytes]
    special_ids: list[int]  # control tokens: no text of an answer
    eos_ids: list[int]  # those that end an answer


class Profile(msgspec.Struct, frozen=True, array_like=True, tag="profile"):
    """A profiler's trace of the next steps is wanted, into a file. One at a time; answered by one Profiled."""

    profile_id: int  # chosen by the gateway, as sequence ids are
    steps: int
    timeout_s: float  # after it, the steps that there were are enough
    path: str  # of a file to be made, in a folder that the gateway removes: Chrome trace JSON, gzip
    max_bytes: int  # of that file


class DropProfile(msgspec.Struct, frozen=True, array_like=True, tag="drop_profile"):
    """Nobody waits for it any more. Nothing is answered; an id that is unknown is ignored."""

    profile_id: int


class Watch(msgspec.Struct, frozen=True, array_like=True, tag="watch"):
    """Snapshots are wanted for so long from now. Another one before its end prolongs it; without, they stop by
    themselves."""

    for_s: float


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """Start-up progress of one phase. total 0: unknown."""

    phase: str
    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The engine takes work from now on."""

    device: str  # for people, such as "cpu (2 threads, AVX-512)"
    dtype: str
    attention: str
    architecture: str
    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_seqs: int
    max_step_tokens: int
    num_parameters: int
    weights_bytes: int  # this and the next: of each rank, where there are several
    kv_cache_bytes: int
    phases_s: list[tuple[str, float]]  # start-up phases and their seconds
    hidden_size: int = 0  # of the embeddings of prompts
    working_bytes: int = 0  # that the steps themselves need on the device, where that was measured


class Fatal(msgspec.Struct, frozen=True, array_like=True, tag="fatal"):
    """The engine cannot go on. One line that names what and why. kind "model": starting again cannot help."""

    kind: Literal["model", "memory", "internal"]
    message: str


class Pulse(msgspec.Struct, frozen=True, array_like=True, tag="pulse"):
    """Once a second, whatever the step loop does: the process lives. How long the loop has been at what it does, and
    how long that should take; None: nobody can tell."""

    seconds: float
    predicted_s: float | None


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accepted"):
    seq_ids: list[int]


class Rejection(msgspec.Struct, frozen=True, array_like=True, tag="rejection"):
    """None of a Submit's sequences runs. Codes: queue_full, too_long, never_fits, invalid, bad_grammar (the message is
    the compiler's), grammar_timeout."""

    seq_ids: list[int]
    code: str
    message: str
    retry_after_s: float | None


class FirstToken(msgspec.Struct, frozen=True, array_like=True):
    """Where the time before a sequence's first token went, on the engine's clock."""

    queued_s: float
    prefill_s: float
    cached_tokens: int  # prompt tokens that the prefix cache held
    prompt: PromptResult | None = None
    delays: Delays = Delays()


class Output(msgspec.Struct, frozen=True, array_like=True, gc=False):
    seq_id: int
    tokens: list[int]  # includes the stop id that ended it, if one did
    finish: FinishReason | None
    logprobs: list[TokenLogprob] | None = None  # one a token, if asked for
    first: FirstToken | None = None  # with the first token only
    away_s: float | None = None  # with the first token after a preemption: how long it was gone


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    kind: Literal["prefill", "decode", "mixed"]
    num_seqs: int
    num_tokens: int
    seconds: float


WaitReason = Literal["step", "rows", "blocks"]


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """Gauges as they are now; counters since the engine started."""

    running: int
    waiting: int
    waiting_tokens: int
    blocks_used: int  # held by sequences
    blocks_cached: int  # free, but still found by prefix
    blocks_total: int
    steps: int
    failed_steps: int
    preemptions: int
    recomputed_tokens: int
    prefix_queries: int  # prompt tokens looked up
    prefix_hits: int  # of which found
    waits_for: WaitReason = "step"  # what the first of the queue lacks, and so all behind it; step: only its turn
    parked: int = 0  # of those waiting: choices whose prompt the first choice computes
    compiling: int = 0  # sequences that are not in the queue yet, for their grammar is not ready
    others_prefill_s: float = 0.0  # since the start: of steps with decodes, what the prompts in them took
    overtaken: int = 0  # of those waiting: another tenant's was let in in their turn


class Outputs(msgspec.Struct, frozen=True, array_like=True, tag="outputs"):
    """All that one step brought, in one frame, or several steps where the gateway is behind: one output a sequence then
    too. Without a step, at most once a second, a sign of life."""

    outputs: list[Output]
    steps: list[StepRecord]
    stats: EngineStats


class Profiled(msgspec.Struct, frozen=True, array_like=True, tag="profiled"):
    """done: the file is there, whole. Otherwise there is none: no step ran in time, another profile is under way,
    profiling is off, the file would be too large, or something failed, which the message tells in one line."""

    profile_id: int
    outcome: Literal["done", "nothing", "busy", "off", "too_large", "failed"]
    num_steps: int = 0
    num_bytes: int = 0
    message: str = ""


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence that holds a slot."""

    seq_id: int | None  # None: another gateway's
    slot: int
    phase: Literal["prefill", "decode"]
    prompt_len: int
    computed: int  # tokens whose keys and values are there, or will be when the steps in flight are done
    generated: int
    max_tokens: int  # that it may generate
    cached_tokens: int  # of the prompt, found at its first admission
    num_blocks: int
    priority: int
    preemptions: int
    age_s: float  # since it arrived


class Queued(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A sequence that waits for a slot."""

    seq_id: int | None
    num_tokens: int  # to compute before it generates (the next)
    priority: int
    preemptions: int
    parked: bool  # the first choice of its request computes its prompt
    waited_s: float  # since it arrived
    predicted_s: float | None  # until it is admitted; None: nobody can tell


class BlockMap(msgspec.Struct, frozen=True, array_like=True):
    """Which blocks are held, which are free and still found by a prefix; the others are free. In cells of so many
    blocks one after another, and cells that are alike in one run."""

    num_blocks: int
    blocks_per_cell: int  # the last cell may have fewer
    runs: list[tuple[int, int, int]]  # (cells, blocks held in each, blocks cached in each)


class Snapshot(msgspec.Struct, frozen=True, array_like=True, tag="snapshot"):
    """How things stand, for people. At most MAX_SNAPSHOT_ROWS of each list: `stats` has their numbers."""

    rows: list[Row]  # in the order of admission
    queue: list[Queued]  # in its order
    blocks: BlockMap
    stats: EngineStats


ToEngine = Submit | Abort | Vocabulary | Profile | DropProfile | Watch
FromEngine = Progress | Ready | Fatal | Pulse | Accepted | Rejection | Outputs | Profiled | Snapshot

_encoder = msgspec.msgpack.Encoder()
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


class FrameError(Exception):
    """The peer does not speak this protocol; the connection is of no more use."""


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class FrameSplitter:
    """Cuts a byte stream into frame bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Bodies that `data` completes. Raises FrameError on a length over MAX_FRAME_BYTES."""
        buffer = self._buffer
        buffer += data
        bodies, at = [], 0
        while len(buffer) - at >= LENGTH_BYTES:
            size = int.from_bytes(buffer[at : at + LENGTH_BYTES], "little")
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = at + LENGTH_BYTES + size
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[at + LENGTH_BYTES : end]))
            at = end
        del buffer[:at]
        return bodies
