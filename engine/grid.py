"""The positions of every slot's block as one grid, and how far a step takes each block.

Legend: A slots of the batch, W positions of the widest block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusiongpt.engine.layout import Layout
from diffusiongpt.engine.randomness import Purpose, counter_keys, uniform
from diffusiongpt.engine.revise import remask_chances
from diffusiongpt.engine.slot_rows import SlotRows
from diffusiongpt.engine.slots import SlotTable


@dataclass(frozen=True, slots=True)
class Grid:
    """The positions of each slot's block, (A, W) each; rows shorter than W are padded.

    `position` is a canvas position, `packed` the packed token whose logits predict it (its shadow
    where it is filled and has one), `held` the token id it holds. `inside` is no padding,
    `masked` is still to fill, `filled` holds a token that may be revised, and `candidate` is what
    may be committed in this step.
    """

    position: Tensor
    packed: Tensor
    held: Tensor
    inside: Tensor
    masked: Tensor
    filled: Tensor
    candidate: Tensor
    hitting: Tensor


def block_grid(
    table: SlotTable,
    rows: SlotRows,
    layout: Layout,
    width: int,
    *,
    shift: bool,
    going: Tensor,
) -> Grid:
    """The blocks of a batch, `width` positions each; of slots that are not `going` (A,) nothing is
    masked or filled."""
    position = rows.block_start[:, None] + torch.arange(width, device=table.ids.device)
    inside = position < rows.block_end[:, None]
    position = position.minimum((rows.block_end - 1)[:, None])
    in_window = position - layout.start[:, None]
    if shift:
        in_window = (in_window - 1).clamp(min=0)
    slot = rows.slot[:, None]
    to_do = inside & going[:, None]
    masked = to_do & table.masked[slot, position]
    filled = to_do & ~masked & table.revisable[slot, position]
    has_shadow = filled & (rows.revision.shadowed & rows.looks_back)[:, None]
    shadow = layout.first_shadow[:, None] + position - rows.block_start[:, None]
    packed = torch.where(has_shadow, shadow, layout.first[:, None] + in_window)
    return Grid(
        position=position,
        packed=packed,
        held=table.ids[slot, position],
        inside=inside,
        masked=masked,
        filled=filled,
        candidate=masked,
        hitting=table.hitting[slot, position],
    )


def next_step(rows: SlotRows, grid: Grid) -> tuple[Tensor, Tensor]:
    """The block step to take and the time after it; a timed policy skips steps without a hit.

    Ancestral sampling commits each position independently in the step whose time interval
    holds its uniform hitting time (arXiv 2406.07524 with the coin tosses drawn ahead), so an
    interval without a hitting time needs no forward. Looking at a full block again is no step.
    Where coins are tossed, every step is taken, and its time is 1 less the chance of a commit.
    """
    latest = grid.hitting.masked_fill(~grid.candidate, 0.0).amax(dim=1)
    hit = ((1.0 - latest) * rows.steps).ceil().to(torch.long).minimum(rows.steps)
    following = (rows.step + 1).minimum(rows.steps)
    tosses = rows.revision.tosses
    step = torch.where(rows.policy.timed & ~tosses, hit.maximum(following), following)
    step = torch.where(grid.candidate.any(dim=1) | tosses, step, rows.step)
    return step, 1.0 - step / rows.steps


def with_coins(rows: SlotRows, grid: Grid, step: Tensor, time: Tensor) -> tuple[Grid, Tensor]:
    """Fresh coins instead of hitting times where a policy tosses: a position is hit when its
    coin is at least the time (A,), which is 1 less the chance."""
    _, fill = remask_chances(rows.revision, step, rows.steps)
    coin = step_coins(rows, grid, Purpose.HIT, step)
    tosses = rows.revision.tosses
    grid = replace(grid, hitting=torch.where(tosses[:, None], coin, grid.hitting))
    return grid, torch.where(tosses, 1.0 - fill, time)


def step_coins(rows: SlotRows, grid: Grid, purpose: Purpose, step: Tensor) -> Tensor:
    """Uniform numbers (A, W) of every position in this step."""
    in_completion = grid.position - rows.prompt_length[:, None]
    return uniform(counter_keys(rows.seed[:, None], purpose, in_completion, step[:, None]))
