"""How a step's attention is cut into tiles, on the host. What a tile is, the kernels say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray

SPLIT = 256  # keys of a tile, but for steps of very few sequences and of many (split_for)
FEW_ITEMS, MANY_PAIRS = 32, 256  # of a tile and a kv head; of a sequence and a kv head
MANY_KEYS = ((1_200_000, 8), (900_000, 4))  # of all sequences and kv heads: so many SPLITs a tile
TILE_INTS = 8  # 5 of them used
SPLIT_AT = 4  # counts[SPLIT_AT]: keys of a tile in this step, a multiple of 16; 0: SPLIT
PREFILL_ROWS = {2: 64, 4: 32}  # by bytes of a number; of a tile: tokens * query heads of a kv head


@dataclass(frozen=True, slots=True)
class Tiling:
    """How attention is cut into tiles."""

    group: int  # query heads that share a kv head
    kv_heads: int
    prefill_rows: int
    max_decode_tiles: int  # at least one for each row


def split_for(kv_lens: NDArray[Any], kv_heads: int, max_tiles: int) -> int:
    """Keys of a step's tiles. Few sequences need small ones to occupy the device; many waste less on the seams of large
    ones. So the last bits of a result may depend on what else is decoded, as those of the products around it do."""
    split = SPLIT
    if len(kv_lens) * kv_heads >= MANY_PAIRS:
        keys = int(kv_lens.sum()) * kv_heads
        split = SPLIT * next((factor for least, factor in MANY_KEYS if keys >= least), 2)
    elif _num_tiles(kv_lens, SPLIT) * kv_heads < FEW_ITEMS:
        split = SPLIT // 2
    while _num_tiles(kv_lens, split) > max_tiles:
        split *= 2
    return split


def _num_tiles(kv_lens: NDArray[Any], split: int) -> int:
    return int((-(-kv_lens // split)).sum())


def decode_tiles(
    tokens: NDArray[Any], rows: NDArray[Any], kv_lens: NDArray[Any], split: int = SPLIT
) -> NDArray[np.int32]:
    """tokens, rows, kv_lens: [n], index of each token, its row, and the keys it sees. Returns [tiles, TILE_INTS]: those
    with most keys first, so that the small ones fill up what the large ones leave of the last programs' time."""
    splits = -(-kv_lens // split)
    begins = np.cumsum(splits) - splits
    which = np.repeat(np.arange(len(tokens)), splits)
    tiles = np.zeros((len(which), TILE_INTS), np.int32)
    tiles[:, 0] = tokens[which]
    tiles[:, 1] = rows[which]
    tiles[:, 2] = kv_lens[which]
    tiles[:, 3] = np.arange(len(which)) - begins[which]
    tiles[:, 4] = begins[which]
    num_keys = np.minimum(tiles[:, 2] - tiles[:, 3] * split, split)
    return tiles[np.argsort(-num_keys, kind="stable")]


def tile_rows(group: int, dtype: torch.dtype) -> int:
    """group: query heads that share a kv head. Always room for four tokens."""
    return max(PREFILL_ROWS[dtype.itemsize], 4 * int(triton.next_power_of_2(group)))


def prefill_tiles(
    starts: NDArray[Any], counts: NDArray[Any], positions: NDArray[Any], group: int, rows: int
) -> NDArray[np.int32]:
    """starts, counts, positions: [n], of each run of tokens: index of the first, how many, position of the first.
    group: query heads that share a kv head; rows: of a tile.
    Returns [tiles, 2]: index of the first token, how many; longest context first."""
    size = rows // group
    tiles = -(-counts // size)
    run = np.repeat(np.arange(len(counts)), tiles)
    skipped = (np.arange(len(run)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * size
    found = np.stack([starts[run] + skipped, np.minimum(counts[run] - skipped, size)], axis=1)
    order = np.argsort(-(positions[run] + skipped), kind="stable")
    return found[order].astype(np.int32)
