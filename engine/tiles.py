"""Attention of packed tokens by PyTorch's SDPA, run by run and tile by tile.

Each run of equally long neighbours is one call, which gives bit for bit what a call per segment
gives. Where a window or a block mask hides keys, the queries go in tiles and each tile meets
only the keys that it may see: measured on one core with 8 heads and a window of 64 either way,
1.7 times faster than a dense mask at 512 tokens, 3 at 1024.

Legend: T packed tokens, L tokens of a segment, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusiongpt.engine.cache import SlotCache

# Queries of a tile: smaller ones see fewer keys in vain, larger ones mean fewer calls.
_TILE = 128
# A mask is at most _TILE * L: 256 of them at 1024 tokens in float32 are 128 MiB.
_CACHED_MASKS = 256
_CACHED_TILINGS = 4096


@dataclass(frozen=True, slots=True)
class Run:
    """`count` neighbours of `length` tokens each, from token `start` of the row on."""

    start: int
    count: int
    length: int
    block_length: int | None
    cache: SlotCache | None
    shadows: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its segments see themselves alone."""
        return self.cache is None and self.shadows is None


def attend_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: Iterable[Run],
    layer: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attention of a row of packed tokens, (1, T, H, D), that is cut into `runs`; see
    `attention.packed_attention`."""
    outputs = []
    seen_keys = seen_values = key[:, :, :0]
    num_before = 0
    for run in runs:
        tokens = slice(run.start, run.start + run.count * run.length)
        queries, keys, values = (
            _by_segment(heads[0, :, tokens], run.length) for heads in (query, key, value)
        )
        if run.shadows is not None:
            limits = Limits.of(seen_keys.shape[2], window, run.block_length)
            mask = _shadow_mask(
                num_before + run.shadows,
                run.length,
                seen_keys.shape[2],
                limits,
                query.dtype,
                query.device,
            )
            keys, values = torch.cat([seen_keys, keys], 2), torch.cat([seen_values, values], 2)
            outputs.append(_attend_once(queries, keys, values, mask, scaling)[0])
            continue
        num_before = 0
        if run.cache is not None:
            num_before = run.cache.length
            keys, values = run.cache.extend(layer, keys, values)
        limits = Limits.of(keys.shape[2], window, run.block_length)
        outputs.append(_attend(queries, keys, values, limits, scaling, num_before).flatten(0, 1))
        seen_keys, seen_values = keys[-1:], values[-1:]
    return torch.cat(outputs)[None]


def _by_segment(heads: Tensor, length: int) -> Tensor:
    """(H, n * L, D) to (n, H, L, D), without a copy."""
    return heads.view(heads.shape[0], -1, length, heads.shape[2]).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may see within a segment; None where that hides nothing."""

    window: int | None
    block_length: int | None

    @classmethod
    def of(cls, length: int, window: int | None, block_length: int | None) -> Limits:
        """The limits that hide something in a segment of `length` tokens."""
        return cls(
            None if window is None or length <= window else window,
            None if block_length is None or length <= block_length else block_length,
        )

    def keys(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """The keys first..last that hold all that the queries start..stop see."""
        first, last = 0, length
        if self.window is not None:
            first, last = max(0, start - self.window + 1), min(length, stop + self.window - 1)
        if self.block_length is not None:
            last = min(last, -(-stop // self.block_length) * self.block_length)
        return first, last

    def hide(self, query: Tensor, key: Tensor) -> Tensor:
        """Which keys (K,) are hidden from which queries (Q, 1), (Q, K) bool."""
        hidden = torch.zeros(len(query), len(key), dtype=torch.bool, device=key.device)
        if self.window is not None:
            hidden |= (query - key).abs() >= self.window
        if self.block_length is not None:
            hidden |= key // self.block_length > query // self.block_length
        return hidden


@dataclass(frozen=True, slots=True)
class Tile:
    """The queries start..stop of a segment with the keys first..last."""

    start: int
    stop: int
    first: int
    last: int


@lru_cache(maxsize=_CACHED_TILINGS)
def _tiles(begin: int, end: int, length: int, limits: Limits) -> tuple[Tile, ...]:
    """The queries begin..end of a segment of `length` keys, tile by tile."""
    if limits.window is None and limits.block_length is None:
        return (Tile(begin, end, 0, length),)
    starts = range(begin, end, _TILE)
    stops = (min(start + _TILE, end) for start in starts)
    return tuple(
        Tile(start, stop, *limits.keys(start, stop, length))
        for start, stop in zip(starts, stops, strict=True)
    )


def _attend(
    query: Tensor, key: Tensor, value: Tensor, limits: Limits, scaling: float, num_before: int
) -> Tensor:
    """(n, H, L, D) to (n, L, H, D); keys and values have `num_before` positions more in front,
    and may have some behind."""
    outputs = []
    for tile in _tiles(num_before, num_before + query.shape[2], key.shape[2], limits):
        keys = slice(tile.first, tile.last)
        output = _attend_once(
            query[:, :, tile.start - num_before : tile.stop - num_before],
            key[:, :, keys],
            value[:, :, keys],
            _mask(tile, limits, query.dtype, query.device),
            scaling,
        )
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _attend_once(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """(n, H, L, D) to (n, L, H, D) in one call."""
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return output.transpose(1, 2)


def _mask(tile: Tile, limits: Limits, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The additive mask (queries, keys) of a tile, or None where it would hide nothing."""
    if limits.window is None and limits.block_length is None:
        return None
    # Tiles in the middle of long segments are alike but for where they start.
    shift = tile.first - tile.first % (limits.block_length or 1)
    moved = Tile(tile.start - shift, tile.stop - shift, tile.first - shift, tile.last - shift)
    return _build_mask(moved, limits, dtype, device)


@lru_cache(maxsize=_CACHED_MASKS)
def _build_mask(
    tile: Tile, limits: Limits, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    query = torch.arange(tile.start, tile.stop, device=device)[:, None]
    key = torch.arange(tile.first, tile.last, device=device)
    hidden = limits.hide(query, key)
    return _additive(hidden, dtype) if hidden.any() else None


@lru_cache(maxsize=_CACHED_MASKS)
def _shadow_mask(
    place: int,
    count: int,
    num_keys: int,
    limits: Limits,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The additive mask (count, num_keys + count) of shadows at the keys from `place` on: each
    sees the keys within its limits but the one at its own place, and of the shadows itself."""
    query = torch.arange(place, place + count, device=device)[:, None]
    key = torch.arange(num_keys, device=device)
    hidden = limits.hide(query, key) | (key == query)
    others = ~torch.eye(count, dtype=torch.bool, device=device)
    return _additive(torch.cat([hidden, others], dim=1), dtype)


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    # Additive in the queries' dtype: SDPA would turn a boolean mask into that in every layer.
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, -torch.inf)
