"""What a request adds to its logits: its own biases, penalties for what it holds, and credit.

All are sparse: a few token ids a slot, and no (rows, vocabulary) tensor of their own. An id
has one addend in each list, so the sums do not depend on an order of addition.

Legend: A slots of a batch, W positions of the widest block, B ids of the longest list, R rows
of the head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusiongpt.engine.frontier import Frontier


@dataclass(frozen=True, slots=True)
class BiasList:
    """Addends of the logits: `token_id` and `value`, (..., B) each; a value of 0 is no addend."""

    token_id: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class RowBias:
    """The addends of R rows: those of slot `row` (R,), and those of its position `column` (R,);
    and what is allowed at frontiers."""

    row: Tensor
    column: Tensor
    of_slots: tuple[BiasList, ...]
    of_positions: BiasList | None
    frontier: Frontier | None = None

    def rows(self, start: int, stop: int) -> RowBias:
        """The addends of rows start..stop."""
        some = slice(start, stop)
        return RowBias(
            self.row[some], self.column[some], self.of_slots, self.of_positions, self.frontier
        )

    def add_to(self, logits: Tensor) -> None:
        """Add them to the logits (R, V), in place."""
        for each in self.of_slots:
            logits.scatter_add_(1, each.token_id[self.row], each.value[self.row])
        if self.of_positions is not None:
            where = self.row, self.column
            ids, values = self.of_positions.token_id, self.of_positions.value
            logits.scatter_add_(1, ids[where], values[where])
        if self.frontier is not None:
            self.frontier.restrict(logits, self.row, self.column)


@dataclass(frozen=True, slots=True)
class BatchBias:
    """All addends of a batch: lists (A, B) of its slots, and one (A, W, B) of their positions; and
    the frontiers of its guided slots."""

    of_slots: tuple[BiasList, ...] = ()
    of_positions: BiasList | None = None
    frontier: Frontier | None = None

    def at(self, row: Tensor, column: Tensor) -> RowBias | None:
        """The addends of positions `column` (R,) of slots `row` (R,); None if there are none."""
        if not self.of_slots and self.of_positions is None and self.frontier is None:
            return None
        return RowBias(row, column, self.of_slots, self.of_positions, self.frontier)


def penalties(ids: Tensor, held: Tensor, frequency: Tensor, presence: Tensor) -> BiasList:
    """OpenAI's penalties: a token that occurs c > 0 times loses c * frequency + presence.

    Args:
        ids: (A, L) tokens of each completion. held: (A, L) bool, those that are not masked.
        frequency, presence: (A,) penalties of each slot.
    """
    ordered = ids.masked_fill(~held, -1).sort(dim=1).values
    begins = torch.ones_like(held)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = begins.cumsum(dim=1) - 1  # (A, L) which run of equal tokens
    count = torch.zeros_like(ordered, dtype=torch.float32)
    count.scatter_add_(1, run, torch.ones_like(count))
    token_id = torch.full_like(ordered, -1).scatter_(1, run, ordered)
    value = -(frequency[:, None] * count + presence[:, None])
    return BiasList(token_id.clamp(min=0), value.masked_fill(token_id < 0, 0.0))
