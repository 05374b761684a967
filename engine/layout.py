"""Where the windows of a batch lie in its row of packed tokens.

The host knows it ahead of a step, and a step changes nothing of it: so it is put on the device once
for as many steps as have the same windows, and the step reads tokens by an index.

Legend: A slots of the batch, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.slots import SlotTable
from diffusiongpt.engine.upload import upload


@dataclass(frozen=True, slots=True)
class Window:
    """The canvas positions start..stop of a slot that the model computes in this step.

    With a cache it sees what that keeps as well, and positions count from the canvas's start;
    without one they count from `start`. `block_length` is of block-causal attention, or None.
    From `shadows_from` on, `num_shadows` positions have a shadow each: a mask that stands there
    too, sees all but the token at its place, and is seen by nothing. So its logits say what the
    rest of the canvas makes of that place, even if the model never learnt to predict filled
    positions.
    """

    slot: int
    start: int
    stop: int
    cache: SlotCache | None = None
    block_length: int | None = None
    shadows_from: int = 0
    num_shadows: int = 0

    @property
    def length(self) -> int:
        """Positions of the window."""
        return self.stop - self.start

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes: its positions and their shadows."""
        return self.length + self.num_shadows

    @property
    def first_position_id(self) -> int:
        """What the model takes the window's first token to stand at."""
        return 0 if self.cache is None else self.start


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The row of packed tokens of a batch.

    Attributes:
        of_slots: (4, A) and of_tokens: (2, T) on the device; their rows are the properties below.
        plan: who sees whom.
    """

    of_slots: Tensor
    of_tokens: Tensor
    plan: AttentionPlan

    @property
    def slot(self) -> Tensor:
        """The slots (A,) of the batch."""
        return self.of_slots[0]

    @property
    def start(self) -> Tensor:
        """The canvas positions (A,) where their windows begin."""
        return self.of_slots[1]

    @property
    def first(self) -> Tensor:
        """The packed tokens (A,) that stand there."""
        return self.of_slots[2]

    @property
    def first_shadow(self) -> Tensor:
        """The packed tokens (A,) that are their first shadows, of slots that cast some."""
        return self.of_slots[3]

    @property
    def position_id(self) -> Tensor:
        """What the model takes each token to stand at, (T,)."""
        return self.of_tokens[1]

    def ids(self, table: SlotTable) -> Tensor:
        """The token ids (T,), as the canvases stand."""
        return table.ids.flatten()[self.of_tokens[0]]

    def padded(self, num_tokens: int, blank: int) -> Layout:
        """The layout of a row that is filled up to `num_tokens` by what stands at place `blank`."""
        missing = num_tokens - self.of_tokens.shape[1]
        if missing <= 0:
            return self
        padding = self.of_tokens.new_zeros(2, missing)
        padding[0].fill_(blank)
        of_tokens = torch.cat([self.of_tokens, padding], dim=1)
        return replace(self, of_tokens=of_tokens, plan=self.plan.padded(num_tokens))

    def copy(self) -> Layout:
        """The same in memory of its own."""
        return replace(self, of_slots=self.of_slots.clone(), of_tokens=self.of_tokens.clone())

    def load(self, other: Layout) -> None:
        """Become a layout of as many slots and tokens, without moving; its plan goes elsewhere."""
        self.of_slots.copy_(other.of_slots)
        self.of_tokens.copy_(other.of_tokens)


def lay_out(table: SlotTable, windows: Sequence[Window]) -> Layout:
    """Lay the windows of a batch side by side, each with its shadows behind it."""
    segments = [segment for window in windows for segment in _segments(table, window)]
    of_slots, first = [], 0
    for window in windows:
        of_slots.append((window.slot, window.start, first, first + window.length))
        first += window.num_tokens
    of_tokens = torch.cat([segment.tokens for segment in segments], dim=1)
    return Layout(
        upload(torch.tensor(of_slots).T.contiguous(), table.ids.device),
        upload(of_tokens, table.ids.device),
        AttentionPlan(
            lengths=tuple(segment.tokens.shape[1] for segment in segments),
            block_lengths=tuple(segment.block_length for segment in segments),
            caches=tuple(segment.cache for segment in segments),
            shadows=tuple(segment.shadows for segment in segments),
        ),
    )


class _Segment(NamedTuple):
    """Neighbours in the row of packed tokens and what they see; `tokens` (2, L) says where each
    stands in the canvases of all slots, one after another, and for the model."""

    tokens: Tensor
    block_length: int | None
    cache: SlotCache | None = None
    shadows: int | None = None


def _segments(table: SlotTable, window: Window) -> Iterator[_Segment]:
    """A window's canvas, and the shadows of its block if it has some."""
    offset = torch.arange(window.length)
    place = window.slot * table.ids.shape[1] + window.start + offset
    position_id = window.first_position_id + offset
    tokens = torch.stack([place, position_id])
    yield _Segment(tokens, window.block_length, window.cache)
    if window.num_shadows:
        begin = window.shadows_from - window.start
        shadows = tokens[:, begin : begin + window.num_shadows].clone()
        shadows[0].fill_(table.blank)
        yield _Segment(shadows, window.block_length, shadows=begin)
