"""Who sees whom in a row of packed tokens. Python values: tensors of the same facts are in
`segments.py`.

Legend: T packed tokens, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from torch import Tensor

from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.tiles import Run, attend_runs

# Padding goes in short segments: attention is quadratic in a segment.
PADDING_SEGMENT = 64


class Plan(Protocol):
    """What a layer needs of the batch: an `AttentionPlan`, or tensors in its stead."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention of a row of packed tokens, (1, T, H, D); see `attention.packed_attention`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionPlan:
    """Who sees whom in a row of packed tokens.

    Attributes:
        lengths: tokens of each segment in the order of the row; their sum is T.
        block_length: block-causal attention: position i sees j where block(j) <= block(i),
            positions counted from the segment's start. None: a segment sees all of itself.
        block_lengths: the same for each segment, where they differ; empty: `block_length`.
        caches: of each segment, or empty; a segment with a cache goes on where that ends.
        shadows: of each segment, or empty. A segment of shadows stands at consecutive positions of
            the segment before it, from the given one on; each of its tokens sees all of that
            segment but the token at its own position, and itself. Nothing sees shadows.
    """

    lengths: tuple[int, ...]
    block_length: int | None = None
    block_lengths: tuple[int | None, ...] = ()
    caches: tuple[SlotCache | None, ...] = ()
    shadows: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths must be at least one length >= 1, got {self.lengths}")
        for block_length in (self.block_length, *self.block_lengths):
            if block_length is not None and block_length < 1:
                raise ValueError(f"block_length must be at least 1, got {block_length}")
        if len(self.block_lengths) not in (0, len(self.lengths)):
            raise ValueError(
                f"{len(self.lengths)} segments have {len(self.block_lengths)} block lengths"
            )
        if len(self.caches) not in (0, len(self.lengths)):
            raise ValueError(f"{len(self.lengths)} segments have {len(self.caches)} caches")
        if len(self.shadows) not in (0, len(self.lengths)):
            raise ValueError(f"{len(self.lengths)} segments have {len(self.shadows)} shadows")
        if self.shadows and self.shadows[0] is not None:
            raise ValueError("the first segment has none before it that it could shadow")

    @cached_property
    def num_tokens(self) -> int:
        """T, the tokens of all segments."""
        return sum(self.lengths)

    @property
    def has_blocks(self) -> bool:
        """Whether some segment is block-causal."""
        return self.block_length is not None or any(self.block_lengths)

    def padded(self, num_tokens: int) -> AttentionPlan:
        """The plan of a row that is filled up to `num_tokens`, unless it is as long already."""
        whole, rest = divmod(max(num_tokens - self.num_tokens, 0), PADDING_SEGMENT)
        padding = (PADDING_SEGMENT,) * whole + (rest,) * bool(rest)
        nothing = (None,) * len(padding)
        return replace(
            self,
            lengths=self.lengths + padding,
            block_lengths=self.block_lengths and self.block_lengths + nothing,
            caches=self.caches and self.caches + nothing,
            shadows=self.shadows and self.shadows + nothing,
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention of a row of packed tokens, (1, T, H, D); see `attention.packed_attention`."""
        if query.shape[0] != 1 or query.shape[2] != self.num_tokens:
            raise ValueError(
                f"the plan has one row of {self.num_tokens} tokens, "
                f"got queries of shape {tuple(query.shape)}"
            )
        return attend_runs(query, key, value, self.runs, layer, scaling, window)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Neighbours of one length and block length together, but what has a cache, and shadows,
        alone."""
        runs: list[Run] = []
        start = 0
        blocks = self.block_lengths or (self.block_length,) * len(self.lengths)
        caches = self.caches or (None,) * len(self.lengths)
        shadows = self.shadows or (None,) * len(self.lengths)
        for segment in zip(self.lengths, blocks, caches, shadows, strict=True):
            last = runs[-1] if runs else None
            if last and segment == (last.length, last.block_length, None, None) and last.is_plain:
                runs[-1] = replace(last, count=last.count + 1)
            else:
                runs.append(Run(start, 1, *segment))
            start += segment[0]
        return tuple(runs)
