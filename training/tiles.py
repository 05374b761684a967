"""Who sees whom in training, and the tiles of queries and keys that cover it.

Queries are taken in chunks, each with the keys that any of them may see, so that what blocks and
windows always hide is never computed. B rows, L positions of a row; T = 2L positions with two
streams [x_t ; x_0], T = L with one; a stack is N tiles of Q queries and K keys each.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

Run = tuple[int, int]  # positions from the first to before the second

# Queries of a stream in a tile, at most, or one block. Smaller tiles compute less that is hidden,
# and make smaller products (128 and 64 took the same time on a CPU with AMX).
CHUNK = 128
# Pairs of a query and a key in a stack, at most, where it has several tiles.
STACK_PAIRS = 1 << 18


class Tile(NamedTuple):
    """Some queries and the keys that they may see, both as runs of positions."""

    queries: tuple[Run, ...]
    keys: tuple[Run, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys, how many."""
        return _count(self.queries), _count(self.keys)


class Stack(NamedTuple):
    """Tiles of one shape, computed together, and their additive mask."""

    queries: tuple[Run, ...]  # of N tiles, one after another
    keys: tuple[Run, ...]
    mask: Tensor  # (B, 1, N, Q, K)


class TilePlan:
    """The stacks of one kind of layer. Not a tuple: compiled layers shall not look into it."""

    def __init__(self, stacks: list[Stack]) -> None:
        self.stacks = stacks


def may_see(
    segments: Tensor,
    queries: Tensor,
    keys: Tensor,
    block_length: int,
    window: int | None,
    two_streams: bool,
) -> Tensor:
    """Whether each query may see each key, (B, ..., Q, K) bool.

    The rule of BD3-LM (arXiv 2503.09573): clean positions see their own and earlier blocks of x_0,
    noisy ones their own block of x_t and earlier blocks of x_0; nobody sees another segment.

    Args:
        segments: (B, L).
        queries, keys: (..., Q) and (..., K) positions of 0..T; with two streams the first L are
            noisy.
        block_length: 0 if every position sees its whole segment.
        window: how far to either side they see, or None.
    """
    length = segments.shape[1]
    i, j = (queries % length)[..., :, None], (keys % length)[..., None, :]
    allowed = (
        segments[:, queries % length][..., :, None] == segments[:, keys % length][..., None, :]
    )
    if window is not None:
        allowed = allowed & ((i - j).abs() <= window)
    if block_length == 0:
        return allowed
    own, earlier = i // block_length == j // block_length, i // block_length > j // block_length
    if not two_streams:
        return allowed & (own | earlier)
    noisy_query, noisy_key = (queries < length)[..., :, None], (keys < length)[..., None, :]
    return allowed & ((own & (noisy_query == noisy_key)) | (earlier & ~noisy_key))


def plan_tiles(
    segments: Tensor, block_length: int, window: int | None, two_streams: bool, dtype: torch.dtype
) -> TilePlan:
    """Tiles with their masks, for rows of `segments` (B, L); the rest as in `may_see`."""
    stacks = []
    for tiles in stacks_of(segments.shape[1], block_length, window, two_streams):
        queries = torch.tensor([_positions(tile.queries) for tile in tiles])  # (N, Q)
        keys = torch.tensor([_positions(tile.keys) for tile in tiles])  # (N, K)
        allowed = may_see(segments, queries, keys, block_length, window, two_streams)
        stacks.append(
            Stack(
                tuple(run for tile in tiles for run in tile.queries),
                tuple(run for tile in tiles for run in tile.keys),
                additive(allowed, dtype)[:, None],
            )
        )
    return TilePlan(stacks)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to a score: nothing where it is allowed, else the least number there is."""
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


@lru_cache(maxsize=64)
def stacks_of(
    length: int, block_length: int, window: int | None, two_streams: bool
) -> list[list[Tile]]:
    """The tiles of a row, those of one shape together as far as `STACK_PAIRS` lets them."""
    stacks = []
    for shape, tiles in groupby(
        _tiles(length, block_length, window, two_streams), lambda tile: tile.shape
    ):
        alike = list(tiles)
        together = max(1, STACK_PAIRS // (shape[0] * shape[1]))
        stacks += [alike[at : at + together] for at in range(0, len(alike), together)]
    return stacks


def _tiles(length: int, block_length: int, window: int | None, two_streams: bool) -> Iterator[Tile]:
    """Each chunk of queries, of both streams, with the keys between the first and last it sees."""
    block = max(block_length, 1)
    size, reach = max(CHUNK // block * block, block), length
    if window is not None:
        size, reach = min(size, -(-max(window, 1) // block) * block), window
    clean = length if two_streams else 0
    for start in range(0, length, size):
        stop = min(start + size, length)
        last = stop if block_length else min(stop + reach, length)
        queries, keys = (clean + start, clean + stop), (clean + max(start - reach, 0), clean + last)
        if two_streams:
            yield Tile(((start, stop), queries), (keys, (start, stop)))
        else:
            yield Tile((queries,), (keys,))


def tile_pairs(length: int, block_length: int, window: int | None, two_streams: bool) -> int:
    """Pairs of a query and a key that a row's tiles have."""
    stacks = stacks_of(length, block_length, window, two_streams)
    return sum(tile.shape[0] * tile.shape[1] for tiles in stacks for tile in tiles)


def _count(runs: tuple[Run, ...]) -> int:
    return sum(stop - start for start, stop in runs)


def _positions(runs: tuple[Run, ...]) -> list[int]:
    return [position for start, stop in runs for position in range(start, stop)]
