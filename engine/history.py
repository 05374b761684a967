"""What earlier steps of a block thought of its masked positions: steadiness and credit.

Shapes: A slots of the batch, W positions of the widest block, K tokens with credit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusiongpt.engine.bias import BiasList
from diffusiongpt.engine.cells import Cells
from diffusiongpt.engine.grid import Grid
from diffusiongpt.engine.rows import RowStatistics
from diffusiongpt.engine.slot_rows import SlotRows
from diffusiongpt.engine.slots import SlotTable

CREDIT_DECAY, CREDIT_POWER = 0.8, 0.2


def earn_credit(
    ids: Tensor, credit: Tensor, top_id: Tensor, log_top: Tensor
) -> tuple[Tensor, Tensor]:
    """Let a position's most likely token gain credit and all others lose some.

    CreditDecoding (arXiv 2510.06133), C <- 0.8 C + p_top^0.2 of the top token, for the K tokens
    with the most credit only: a new one takes the place of the one with the least.

    Args:
        ids: (N, K) token ids with credit. credit: (N, K), 0 where there is none.
        top_id, log_top: (N,) the most likely token now, and its log-probability.
    """
    credit = CREDIT_DECAY * credit
    is_top = (ids == top_id[:, None]) & (credit > 0.0)
    place = torch.where(is_top.any(dim=1), is_top.long().argmax(dim=1), credit.argmin(dim=1))
    before = (credit * is_top).sum(dim=1)
    gain = (CREDIT_POWER * log_top).exp()
    place = place[:, None]
    return (
        ids.scatter(1, place, top_id[:, None]),
        credit.scatter(1, place, (before + gain)[:, None]),
    )


def is_steady(
    table: SlotTable,
    rows: SlotRows,
    grid: Grid,
    statistics: RowStatistics,
    *,
    whole_grid: bool,
) -> Tensor:
    """Where the top token was the same in enough steps in a row (A, W) bool; notes this one."""
    slot, position = rows.slot[:, None], grid.position
    is_same = statistics.top_id == table.last_top[slot, position]
    stable_for = torch.where(is_same, table.stable_for[slot, position] + 1, 1)
    cells = Cells.of(grid.masked, whole_grid=whole_grid)
    where = rows.slot[cells.row], cells.or_else(cells.of_grid(position), table.nowhere)
    table.last_top[where] = cells.of_grid(statistics.top_id)
    table.stable_for[where] = cells.of_grid(stable_for)
    return stable_for >= rows.policy.stable[:, None]


def credit_tokens(
    table: SlotTable,
    rows: SlotRows,
    grid: Grid,
    statistics: RowStatistics,
    *,
    whole_grid: bool,
) -> BiasList:
    """Credit the top token of every masked position, and what that adds to logits: (A, W, K)."""
    earning = grid.masked & (rows.policy.credit > 0.0)[:, None]
    cells = Cells.of(earning, whole_grid=whole_grid)
    where = rows.slot[cells.row], cells.or_else(cells.of_grid(grid.position), table.nowhere)
    table.credit_ids[where], table.credit[where] = earn_credit(
        table.credit_ids[where],
        table.credit[where],
        cells.of_grid(statistics.top_id),
        cells.of_grid(statistics.log_top),
    )
    slot = rows.slot[:, None]
    amount = rows.policy.credit[:, None, None] * table.credit[slot, grid.position].log1p()
    return BiasList(table.credit_ids[slot, grid.position], amount)
