"""Which positions of a batch's grid something is done for.

Either as many as there are, and the host waits until the device has counted them, or all of the
grid with a mark on those that are meant: more work, and nothing to wait for.

Legend: A slots of the batch, W positions of the widest block, N cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cells:
    """Positions `column` (N,) of batch rows `row` (N,); `meant` (N,) bool, None if all are."""

    row: Tensor
    column: Tensor
    meant: Tensor | None = None

    @classmethod
    def of(cls, wanted: Tensor, *, whole_grid: bool) -> Cells:
        """The cells that are `wanted` (A, W), or the whole grid with a mark on them."""
        if not whole_grid:
            return cls(*wanted.nonzero(as_tuple=True))
        cell = torch.arange(wanted.numel(), device=wanted.device)
        width = wanted.shape[1]
        return cls(cell // width, cell % width, wanted.flatten())

    def of_grid(self, values: Tensor) -> Tensor:
        """The values (N,) of these cells, of a grid (A, W)."""
        return values[self.row, self.column]

    def or_else(self, values: Tensor, otherwise: int | float) -> Tensor:
        """The values (N,) of what is meant, and something else for the rest."""
        return values if self.meant is None else torch.where(self.meant, values, otherwise)
