"""Sums over the ranks of a tensor-parallel group, with the sum with the residual and the norm that follow them.

Every rank has written a part of each sum: partial [rows, hidden]. For few rows one kernel sends its own rows to all
others, straight into their memory over NVLink, and adds up what comes in; for many there is NCCL.

    program row:   words of partial[row]  ->  inbox of every other rank, at [half, sender, row]
                   residual[row] += sum over ranks of the words that came in      in the order of ranks: the same bits
                   out[row] = residual[row] / rms * norm                          on all of them

A word is 8 bytes: 4 of numbers, and 4 of a count that says which sum they belong to. A store of 8 bytes arrives whole,
so who waits for the count waits for the numbers, without any other signal: a sum takes one way over the link.

Two halves take turns. Who has ended sum n of a row has heard from all others, and these had ended sum n - 1 before they
began n: nobody still reads the half that sum n + 1 is written to.
"""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.launch import gdc_launch_dependents, gdc_wait, options
from engine.cuda.norm import rms_norm
from engine.models.spec import ModelSpec
from engine.parallel.peers import Peers

log = logging.getLogger("headrace.engine")

MAX_ROWS = 256
# That a rank sends in one sum: with more, NCCL is faster. It has a longer way to the first byte and half the bytes to
# send, without counts. On two H200, 4,096 numbers of 16 bits a row: 9.4 us against 12.1 for 32 rows, which are these
# bytes, and 15.9 against 13.9 for 64.
MOST_BYTES = 256 << 10
KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def put_code(pack: int) -> str:
    """PTX that stores so many words: $0 .. nothing of meaning; then places, words, and whether each counts."""
    stores = [
        f"setp.ne.b32 %p, ${3 * pack + i}, 0; @%p st.relaxed.sys.global.b64 [${pack + i}], ${2 * pack + i};"
        for i in range(pack)
    ]
    return "\n".join(["{", ".reg .pred %p;", *stores, *(f"mov.b32 ${i}, 0;" for i in range(pack)), "}"])


def take_code(pack: int) -> str:
    """PTX that waits for so many words, all of a thread together: $0 .. their numbers; then places, counts, and whether
    each is waited for."""
    each = range(pack)
    loads = [f"@%p{i} ld.relaxed.sys.global.b64 %word{i}, [${pack + i}];" for i in each]
    tests = [
        f"mov.b64 {{${i}, %count}}, %word{i}; setp.ne.and.b32 %p{i}, %count, ${2 * pack + i}, %p{i};" for i in each
    ]
    return "\n".join(
        [
            "{",
            f".reg .pred %p<{pack}>; .reg .pred %any; .reg .b64 %word<{pack}>; .reg .b32 %count;",
            *(f"setp.ne.b32 %p{i}, ${3 * pack + i}, 0; mov.b64 %word{i}, 0;" for i in each),
            "WAIT:",
            *loads,
            *tests,
            "mov.pred %any, %p0;",
            *(f"or.pred %any, %any, %p{i};" for i in each[1:]),
            "@%any bra WAIT;",
            "}",
        ]
    )


def _constraints(output: str, inputs: str, pack: int) -> str:
    return ",".join([output] * pack + [kind for kind in inputs for _ in range(pack)])


# One return in each: the compiler reads on behind a first, whatever is constant.


@triton.jit
def _put(places, words, inside, PUT: tl.constexpr, PUT_TYPES: tl.constexpr, PACK: tl.constexpr):
    """Returns zeros, for whatever is to come after it to depend on."""
    flags = inside.to(tl.int32)
    if PUT is None:
        tl.store(places, words, mask=inside)
        done = flags * 0
    else:
        done = tl.inline_asm_elementwise(
            PUT, PUT_TYPES, [places, words, flags], dtype=tl.int32, is_pure=False, pack=PACK
        )
    return done


@triton.jit
def _take(places, count, inside, TAKE: tl.constexpr, TAKE_TYPES: tl.constexpr, PACK: tl.constexpr):
    """Waits for words of this count. Returns their numbers. Pure, for the compiler may write it down several times and
    is to drop those that nobody needs."""
    if TAKE is None:
        words = tl.load(places, mask=inside, other=0, volatile=True)
        while tl.sum((((words >> 32).to(tl.int32) != count) & inside).to(tl.int32), axis=0) > 0:
            words = tl.load(places, mask=inside, other=0, volatile=True)
        numbers = words.to(tl.int32)
    else:
        flags = inside.to(tl.int32)
        numbers = tl.inline_asm_elementwise(
            TAKE, TAKE_TYPES, [places, count, flags], dtype=tl.int32, is_pure=True, pack=PACK
        )
    return numbers


@triton.jit
def _low(words, kind: tl.constexpr):
    """As float32, the number in the low half; the only one where numbers have 4 bytes."""
    if kind == tl.float32:
        number = words.to(tl.float32, bitcast=True)
    else:
        number = (words & 0xFFFF).to(tl.int16).to(kind, bitcast=True).to(tl.float32)
    return number


@triton.jit
def _high(words, kind: tl.constexpr):
    if kind == tl.float32:
        number = tl.zeros_like(words).to(tl.float32)
    else:
        number = (words >> 16).to(tl.int16).to(kind, bitcast=True).to(tl.float32)
    return number


@triton.jit
def _packed(low, high, kind: tl.constexpr):
    if kind == tl.float32:
        words = low.to(tl.int32, bitcast=True)
    else:
        low_bits = low.to(kind).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        words = low_bits | (high.to(kind).to(tl.int16, bitcast=True).to(tl.int32) << 16)
    return words


@triton.jit
def _sum_rows(
    partial,  # this and the next three: words of 4 bytes
    residual,
    norm,
    out,
    eps,
    inboxes,  # [ranks] addresses of everybody's, as they are seen from here
    counts,  # [max_rows] sums of each row so far
    max_rows,
    hidden,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    kind: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    ADD: tl.constexpr,
    OVERLAP: tl.constexpr,
    PUT: tl.constexpr,
    PUT_TYPES: tl.constexpr,
    TAKE: tl.constexpr,
    TAKE_TYPES: tl.constexpr,
    PACK: tl.constexpr,
):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < WORDS
    scale = tl.load(norm + at, mask=inside, other=0)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + row) + 1
    own = tl.load(partial + row * WORDS + at, mask=inside, other=0)
    before = tl.zeros_like(own)
    if ADD:
        before = tl.load(residual + row * WORDS + at, mask=inside, other=0)
    tagged = (count.to(tl.int64) << 32) | (own.to(tl.int64) & 0xFFFFFFFF)
    first = (count & 1) * RANKS
    sent = tl.zeros((BLOCK,), tl.int32)
    for rank in tl.static_range(RANKS):
        if rank != RANK:
            inbox = tl.load(inboxes + rank).to(tl.pointer_type(tl.int64))
            place = ((first + RANK) * max_rows + row).to(tl.int64) * WORDS
            sent += _put(inbox + place + at, tagged, inside, PUT, PUT_TYPES, PACK)
    low, high = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    mine = tl.load(inboxes + RANK).to(tl.pointer_type(tl.int64))
    for rank in tl.static_range(RANKS):
        words = own
        if rank != RANK:
            place = ((first + rank) * max_rows + row).to(tl.int64) * WORDS
            words = _take(mine + place + at, count + sent, inside, TAKE, TAKE_TYPES, PACK)
        low += _low(words, kind)
        high += _high(words, kind)
    if ADD:
        low += _low(before, kind)
        high += _high(before, kind)
    summed = _packed(low, high, kind)
    tl.store(residual + row * WORDS + at, summed, mask=inside)
    low, high = _low(summed, kind), _high(summed, kind)
    inverse = tl.rsqrt(tl.sum(low * low + high * high, axis=0) / hidden + eps)
    normed = _packed(low * inverse * _low(scale, kind), high * inverse * _high(scale, kind), kind)
    tl.store(out + row * WORDS + at, normed, mask=inside)
    tl.debug_barrier()  # all threads have read the count
    tl.store(counts + row, count)


def machine_code(pack: int) -> tuple[str | None, str, str | None, str, int]:
    """How words are put and taken, so many of a thread together. 0: as the interpreter can."""
    if pack == 0:
        return None, "", None, "", 1
    put_types, take_types = _constraints("=r", "llr", pack), _constraints("=&r", "lrr", pack)
    return put_code(pack), put_types, take_code(pack), take_types, pack


class Links:
    """Memory that the others write to, and the addresses of theirs."""

    def __init__(self, inboxes: Tensor, counts: Tensor, rank: int, own: object = None) -> None:
        """inboxes: [ranks] int64; counts: [max_rows] int32, zeros; own: what is to live as long."""
        self.inboxes = inboxes
        self.counts = counts
        self.rank = rank
        self._own = own

    @property
    def max_rows(self) -> int:
        return len(self.counts)

    @property
    def num_ranks(self) -> int:
        return len(self.inboxes)


def inbox_words(num_ranks: int, max_rows: int, hidden: int, dtype: torch.dtype) -> int:
    """Words of 8 bytes in an inbox."""
    return 2 * num_ranks * max_rows * hidden * dtype.itemsize // 4


def sum_rows(
    partial: Tensor,
    residual: Tensor,
    norm: Tensor,
    eps: float,
    out: Tensor,
    links: Links,
    *,
    add: bool = True,
    overlap: bool = False,
) -> None:
    """residual = sum of all ranks' partial, and with `add` of what it was; out = its RMSNorm. All [rows, hidden]
    contiguous, of even size; rows at most links.max_rows. Every rank calls this with as many rows."""
    rows, hidden = partial.shape
    words = hidden * partial.element_size() // 4
    block = triton.next_power_of_2(words)
    num_warps = min(max(block // 128, 1), 16)  # 4 words a thread
    places = [tensor.view(torch.int32) for tensor in (partial, residual, norm, out)]
    code = machine_code(max(min(block // (32 * num_warps), 4), 1) if partial.is_cuda else 0)
    _sum_rows[(rows,)](
        *places,
        eps,
        links.inboxes,
        links.counts,
        links.max_rows,
        hidden,
        words,
        block,
        KINDS[partial.dtype],
        links.rank,
        links.num_ranks,
        add,
        overlap,
        *code,
        **options(num_warps, overlap),
    )


def link(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Links | None:
    """Every rank calls it. None, on all of them: their memory cannot be reached from here, and the log says why."""
    from torch.distributed import _symmetric_memory as symmetric

    max_rows = max(min(MAX_ROWS, MOST_BYTES // (spec.hidden * dtype.itemsize * (spec.num_ranks - 1))), 1)
    try:
        inbox = symmetric.empty(
            inbox_words(spec.num_ranks, max_rows, spec.hidden, dtype), dtype=torch.int64, device=device
        )
        inbox.zero_()
        torch.cuda.synchronize(device)  # before anybody can know its address
        group = dist.group.WORLD
        assert group is not None, "ranks have found each other before"
        handle = symmetric.rendezvous(inbox, group)
        views = [
            handle.get_buffer(rank, inbox.shape, torch.int64) if rank != spec.rank else inbox
            for rank in range(spec.num_ranks)
        ]
        addresses = [view.data_ptr() for view in views]
    except (RuntimeError, TypeError) as error:
        log.warning("sums over ranks go by NCCL, which takes longer for single tokens: %s", error)
        return None
    counts = torch.zeros(max_rows, dtype=torch.int32, device=device)
    return Links(torch.tensor(addresses, dtype=torch.int64, device=device), counts, spec.rank, (inbox, handle, views))


class Sums:
    """What a decoder asks of its peers."""

    def __init__(self, peers: Peers, links: Links | None) -> None:
        self._peers = peers
        self._links = links

    @property
    def told(self) -> str:
        """For people."""
        return "NCCL" if self._links is None else f"NVLink to {self._links.max_rows} rows, NCCL beyond"

    def add(
        self, partial: Tensor, residual: Tensor, norm: Tensor, eps: float, out: Tensor, add: bool, overlap: bool
    ) -> None:
        """As sum_rows, for any number of rows."""
        if self._links is not None and len(partial) <= self._links.max_rows:
            sum_rows(partial, residual, norm, eps, out, self._links, add=add, overlap=overlap)
            return
        self._peers.sum(partial)
        if add:
            residual.add_(partial)
        else:
            residual.copy_(partial)
        rms_norm(residual, norm, eps, out, overlap)

    def join(self, columns: Tensor, out: Tensor) -> None:
        """out, [rows, width]: the columns of all ranks side by side."""
        out.copy_(self._peers.join(columns, out.shape[1]))


def sums_for(peers: Peers, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Sums | None:
    """None: there are no peers."""
    if spec.num_ranks == 1:
        return None
    links = link(spec, dtype, device)
    if peers.least(int(links is not None)) == 0:
        links = None
    sums = Sums(peers, links)
    log.info("sums over %d ranks by %s", spec.num_ranks, sums.told)
    return sums
