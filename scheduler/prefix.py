"""Names for full blocks: a digest of all tokens from the start of the sequence to the block's end.

The same in every process and on every machine, so that a router can use them too.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

from scheduler.blocks import BlockPool
from scheduler.types import Sequence

DIGEST_BYTES = 16


class ChainHasher:
    """digest(block i) = H(digest(block i-1), tokens of block i); before block 0 stands H(salt)."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._pack = struct.Struct(f"<{block_size}I").pack

    def extend(self, seq: Sequence, num_blocks: int) -> None:
        """Makes seq.hashes cover at least the first `num_blocks` blocks, hashing each block once."""
        hashes, size = seq.hashes, self._block_size
        parent = hashes[-1] if hashes else blake2b(seq.salt, digest_size=DIGEST_BYTES).digest()
        for i in range(len(hashes), num_blocks):
            tokens = self._pack(*seq.tokens[i * size : (i + 1) * size])
            parent = blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest()
            hashes.append(parent)

    def match(self, seq: Sequence, pool: BlockPool) -> list[int]:
        """The published blocks that hold the longest prefix of `seq`, short of its last token.

        The last token is always computed: its logits are what the next one is sampled from.
        """
        found: list[int] = []
        for i in range((len(seq.tokens) - 1) // self._block_size):
            self.extend(seq, i + 1)  # lazily: an unknown prompt costs one hash, not one a block
            block = pool.find(seq.hashes[i])
            if block is None:
                break
            found.append(block)
        return found
