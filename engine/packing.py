"""The row of packed tokens of a batch, through the backbone.

Legend: A slots of the batch, W positions of the widest block, T packed tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.batch_facts import BatchFacts
from diffusiongpt.engine.cells import Cells
from diffusiongpt.engine.grid import Grid
from diffusiongpt.engine.layout import Layout
from diffusiongpt.engine.slot_rows import SlotRows
from diffusiongpt.engine.slots import SlotTable


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
    layout: Layout,
    facts: BatchFacts,
    grid: Grid,
) -> tuple[Tensor, Grid]:
    """The hidden states (R, H) of all positions that the step looks at, and a grid whose
    `packed` says where each one's lies; of all tokens where forwards are padded to be alike."""
    ids, position_ids = layout.ids(table)[None], layout.position_id[None]
    if facts.num_tokens:
        return model.backbone(ids, position_ids, layout.plan), grid
    wanted = grid.candidate | grid.filled & rows.looks_back[:, None]
    cells = Cells.of(wanted, whole_grid=facts.whole_grid)
    tokens = cells.of_grid(grid.packed)
    packed = torch.zeros_like(grid.packed)
    packed[cells.row, cells.column] = torch.arange(len(tokens), device=packed.device)
    hidden = model.backbone(ids, position_ids, layout.plan, tokens)
    return hidden, replace(grid, packed=packed)
