"""What a denoising step changed, and how the host reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from diffusiongpt.engine.rows import Draws

R = TypeVar("R", "Commits", Draws)


@dataclass(frozen=True, slots=True)
class Commits:
    """What one step changed: (N,) each, and where that leaves each slot: (A,) each.

    `row` indexes the batch's slots; `position` is a canvas position; `confidence` is the
    token's probability at temperature 1. `draws` has its logarithm, and the most likely tokens
    if someone asks. The mask came back to `remasked_position` of `remasked_row`. `step` is the
    block step reached, and `is_open` says whether the block may still change.

    `went` (A,) bool says which slots took part. Where the whole grid was computed, `meant` and
    `remask_meant` (N,) bool say which of the rows are changes.
    """

    row: Tensor
    position: Tensor
    token_id: Tensor
    confidence: Tensor
    draws: Draws
    remasked_row: Tensor
    remasked_position: Tensor
    step: Tensor
    is_open: Tensor
    went: Tensor
    meant: Tensor | None = None
    remask_meant: Tensor | None = None

    def copy(self) -> Commits:
        """The same in memory of its own."""
        return _copy(replace(self, draws=_copy(self.draws)))

    def read(self) -> Commits:
        """The same on the host, where only changes are left; waits for the device."""
        commits = replace(
            self, step=self.step.cpu(), is_open=self.is_open.cpu(), went=self.went.cpu()
        )
        if self.meant is None:
            return commits
        meant = self.meant.cpu()
        commits = replace(
            commits,
            row=self.row.cpu()[meant],
            position=self.position.cpu()[meant],
            token_id=self.token_id.cpu()[meant],
            confidence=self.confidence.cpu()[meant],
            draws=self.draws.to_host().at(meant),
            meant=None,
        )
        if self.remask_meant is None:
            return commits
        again = self.remask_meant.cpu()
        return replace(
            commits,
            remasked_row=self.remasked_row.cpu()[again],
            remasked_position=self.remasked_position.cpu()[again],
            remask_meant=None,
        )


def _copy(record: R) -> R:
    """A record with copies of its tensors."""
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    copies: dict[str, Any] = {
        name: value.clone() for name, value in values.items() if isinstance(value, Tensor)
    }
    return replace(record, **copies)
