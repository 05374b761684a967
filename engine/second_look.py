"""What a step does with positions that are filled: edits, masks again, looks once more.

Legend: A slots of the batch, W positions of the widest block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusiongpt.engine.grid import Grid, step_coins
from diffusiongpt.engine.randomness import Purpose
from diffusiongpt.engine.revise import (
    choose_doubted,
    choose_edits,
    choose_kept,
    remask_chances,
    state_keys,
    toss_remasks,
    was_seen,
)
from diffusiongpt.engine.rows import RowStatistics
from diffusiongpt.engine.slot_rows import SlotRows
from diffusiongpt.engine.slots import SlotTable


def revise(
    table: SlotTable,
    rows: SlotRows,
    grid: Grid,
    statistics: RowStatistics,
    chosen: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is committed, edited and masked again, (A, W) bool each; `chosen` changes only where
    all positions are planned together."""
    kept = choose_kept(statistics, grid.masked, grid.filled, step, rows.steps)
    planned = rows.revision.planned[:, None]
    edited = choose_edits(rows.revision, statistics, grid.held, grid.filled)
    coin = step_coins(rows, grid, Purpose.REMASK, step)
    chance, _ = remask_chances(rows.revision, step, rows.steps)
    confidence = table.confidence[rows.slot[:, None], grid.position]
    remasked = toss_remasks(rows.revision, chance, confidence, grid.filled, coin)
    is_full = ~grid.masked.any(dim=1)
    # One fewer than the step before committed, so that the block fills.
    may_remask = (step < rows.steps) & (chosen.sum(dim=1) > 1)
    most = torch.where(may_remask, rows.num_committed - 1, 0)
    remasked |= choose_doubted(rows.revision, statistics, grid.filled, is_full, most)
    remasked |= grid.filled & planned & ~kept
    chosen = torch.where(planned, kept & grid.masked, chosen)
    return chosen, edited & ~remasked, remasked


def review(
    table: SlotTable,
    rows: SlotRows,
    grid: Grid,
    has_masks: Tensor,
    step: Tensor,
    going: Tensor,
) -> tuple[Tensor, Tensor]:
    """Whether each block may still change, and how often it was looked at when it was full.

    A full block is looked at again until its rounds are used or it comes back to a state that
    it was in before: one that did not change, or the start of a cycle. Where coins are tossed,
    it stays open for all its steps.
    """
    round = rows.round + ~grid.masked.any(dim=1)
    key = state_keys(table.ids[rows.slot[:, None], grid.position], grid.inside)
    came_back = was_seen(key, table.seen[rows.slot], round)
    column = round.minimum(rows.revision.max_rounds)
    keeps = has_masks | ~going
    table.seen[rows.slot, column] = torch.where(keeps, table.seen[rows.slot, column], key)
    again = (round < rows.revision.max_rounds) & ~came_back
    tosses = rows.revision.tosses & (step < rows.steps)
    return has_masks | again | tosses, round
