"""What a request adds to its logits: its own biases, and penalties for what it holds already.

Both are sparse: a few token ids a slot, and no (rows, vocabulary) tensor of their own. An id
has one addend in each list, so the sums do not depend on an order of addition.

Legend: A slots of a batch, B ids of the longest list, R rows of the head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BiasList:
    """Addends of the logits: `token_id` and `value`, (A, B) each; a value of 0 is no addend."""

    token_id: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class RowBias:
    """The addends of R rows; `row` (R,) says whose slot's each one's are."""

    row: Tensor
    lists: tuple[BiasList, ...]

    def rows(self, start: int, stop: int) -> RowBias:
        """The addends of rows start..stop."""
        return RowBias(self.row[start:stop], self.lists)

    def add_to(self, logits: Tensor) -> None:
        """Add them to the logits (R, V), in place."""
        for each in self.lists:
            logits.scatter_add_(1, each.token_id[self.row], each.value[self.row])


@dataclass(frozen=True, slots=True)
class BatchBias:
    """All addends of a batch."""

    lists: tuple[BiasList, ...] = ()

    def of(self, row: Tensor) -> RowBias | None:
        """The addends of head rows that belong to the slots `row` (R,); None if there are none."""
        return RowBias(row, self.lists) if self.lists else None


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
