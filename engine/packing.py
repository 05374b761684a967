"""The windows of a batch as one row of packed tokens, through the backbone.

Legend: A slots of the batch, W positions of the widest block, T packed tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.batch_facts import BatchFacts
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.cells import Cells
from diffusiongpt.engine.grid import Grid, Window
from diffusiongpt.engine.slots import SlotRows, SlotTable


class Backbone(Protocol):
    """The part of a loaded model that a step needs."""

    @property
    def logit_shift(self) -> bool:
        """Whether the logits at a position predict the next one."""
        ...

    def backbone(
        self, ids: Tensor, position_ids: Tensor, plan: AttentionPlan, wanted: Tensor | None = None
    ) -> Tensor:
        """(1, T) ids and positions to (T, H) hidden states, or to those of `wanted` (R,) tokens."""
        ...


def run_backbone(
    model: Backbone,
    table: SlotTable,
    rows: SlotRows,
    windows: Sequence[Window],
    facts: BatchFacts,
    grid: Grid,
) -> tuple[Tensor, Grid]:
    """The hidden states (R, H) of all positions that the step looks at, and a grid whose
    `packed` says where each one's lies; of all tokens where forwards are padded to be alike."""
    segments = [segment for window in windows for segment in _segments(table, window)]
    ids, position_ids = (torch.cat(each) for each in zip(*(s[:2] for s in segments), strict=True))
    plan = AttentionPlan(
        lengths=tuple(len(segment.ids) for segment in segments),
        block_lengths=tuple(segment.block_length for segment in segments),
        caches=tuple(segment.cache for segment in segments),
        shadows=tuple(segment.shadows for segment in segments),
    ).padded(facts.num_tokens)
    if facts.num_tokens:
        padding = plan.num_tokens - len(ids)
        ids, position_ids = F.pad(ids, (0, padding)), F.pad(position_ids, (0, padding))
        return model.backbone(ids[None], position_ids[None], plan), grid
    wanted = grid.candidate | grid.filled & rows.looks_back[:, None]
    cells = Cells.of(wanted, whole_grid=facts.whole_grid)
    tokens = cells.of_grid(grid.packed)
    packed = torch.zeros_like(grid.packed)
    packed[cells.row, cells.column] = torch.arange(len(tokens), device=packed.device)
    hidden = model.backbone(ids[None], position_ids[None], plan, tokens)
    return hidden, replace(grid, packed=packed)


class _Segment(NamedTuple):
    """Neighbours in the row of packed tokens, (L,) each, and what they see."""

    ids: Tensor
    position_ids: Tensor
    block_length: int | None
    cache: SlotCache | None = None
    shadows: int | None = None


def _segments(table: SlotTable, window: Window) -> Iterator[_Segment]:
    """A window's canvas, and the shadows of its block if it has some."""
    ids = table.ids[window.slot, window.start : window.stop]
    first = window.first_position_id
    position_ids = torch.arange(first, first + window.length, device=ids.device)
    yield _Segment(ids, position_ids, window.block_length, window.cache)
    if window.num_shadows:
        place = window.shadows_from - window.start
        stop = place + window.num_shadows
        masks = torch.full_like(ids[:1], table.mask_token_id).expand(window.num_shadows)
        yield _Segment(masks, position_ids[place:stop], window.block_length, shadows=place)
