"""The editing curriculum of Seed Diffusion (arXiv 2508.02193): wrong tokens that are visible.

From `edit_stage_start` on, some visible tokens are wrong and every visible token is a target, so
that the model learns to keep what is right and to replace what is not. A *window* is where a text
may grow or shrink: a block, or with the masked objective a segment. B rows, L positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongpt.training.noise import keyed_generator

EDIT_PURPOSE = 1


class Corruption(NamedTuple):
    """What the model sees and what it must say, all (B, L).

    Attributes:
        masked: positions that hold the mask. weights: of their losses.
        noisy: what the model sees. targets: what stands there in truth.
        visible: positions that hold a token, right or wrong, and are targets too.
    """

    masked: Tensor
    weights: Tensor
    noisy: Tensor
    targets: Tensor
    visible: Tensor


class EditDraws(NamedTuple):
    """Numbers in [0, 1) that decide the edits of rows, all (B, L)."""

    substitute: Tensor
    replacement: Tensor
    insert: Tensor
    insert_where: Tensor
    inserted: Tensor
    delete: Tensor
    delete_where: Tensor

    def to(self, device: torch.device) -> EditDraws:
        """The same draws on another device."""
        return EditDraws(*(each.to(device) for each in self))


def corruption_at(
    step: int, max_steps: int, start: float | None, probability: float, anneal: bool
) -> float | None:
    """The corruption probability at `step`, or None before the edit stage.

    `start` is a share of the run; with `anneal` the probability grows from 0 to `probability`
    between there and the end: (90, 100, 0.8, 0.1, True) -> 0.05.
    """
    if start is None or step < start * max_steps:
        return None
    if not anneal:
        return probability
    return probability * (step / max_steps - start) / max(1 - start, 1e-9)


def draw_edits(
    seed: int, step: int, first_row: int, batch: int, num_rows: int, length: int
) -> EditDraws:
    """The draws of rows `first_row..first_row+batch` of a global batch, keyed like the masks."""
    generator = keyed_generator(seed, step, EDIT_PURPOSE)
    drawn = torch.rand(7, num_rows, length, generator=generator)
    return EditDraws(*drawn[:, first_row : first_row + batch])


def windows_of(segments: Tensor, block_length: int | None) -> Tensor:
    """(B, L) long: the same number for neighbours of one segment (and block), growing by 1."""
    starts = torch.zeros_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    if block_length is not None:
        starts[:, block_length::block_length] = True
    return starts.long().cumsum(1)


def corrupt_visible(
    tokens: Tensor,
    maskable: Tensor,
    windows: Tensor,
    masked: Tensor,
    weights: Tensor,
    draws: EditDraws,
    probability: float,
    mask_token_id: int,
    ordinary_ids: Tensor,
    delete_token_id: int | None = None,
    deletion: bool = False,
) -> Corruption:
    """Corrupt what the masks left visible; see `substitute`, `delete_one`, `insert_one`.

    Args:
        maskable: positions that are trained; no other is touched or becomes a target.
        masked, weights: of the forward process.
        ordinary_ids: (R,) what a random token may be.
        delete_token_id: the target of an inserted token; None inserts nothing.
        deletion: whether tokens are left out.
    """
    visible = maskable & ~masked
    noisy = torch.where(masked, mask_token_id, tokens)
    noisy = substitute(noisy, visible, draws, probability, ordinary_ids)
    corruption = Corruption(masked, weights, noisy, tokens, visible)
    if deletion:
        corruption = delete_one(corruption, windows, draws, probability, mask_token_id)
    if delete_token_id is not None:
        random_ids = _pick(ordinary_ids, draws.inserted)
        corruption = insert_one(
            corruption, windows, draws, probability, random_ids, delete_token_id
        )
    return corruption


def substitute(
    noisy: Tensor, visible: Tensor, draws: EditDraws, probability: float, ordinary_ids: Tensor
) -> Tensor:
    """Replace each visible token with `probability` by a random ordinary one."""
    replaced = visible & (draws.substitute < probability)
    return torch.where(replaced, _pick(ordinary_ids, draws.replacement), noisy)


def delete_one(
    corruption: Corruption, windows: Tensor, draws: EditDraws, probability: float, mask: int
) -> Corruption:
    """With `probability` leave one visible token out of each window.

    The visible tokens between it and the next masked position (or whatever ends the stretch of
    targets) move one to the left, and the position that becomes free holds a mask of weight 1.
    Every target stays where it is: the model says what stands there in the true text.
    """
    chosen = _choose(corruption.visible, windows, draws.delete, draws.delete_where, probability)
    run = _runs(windows, corruption.visible)
    moved = corruption.visible & _reached(chosen, run)
    last = moved & (_shift_left(run, fill=-1) != run)
    noisy = torch.where(moved, _shift_left(corruption.noisy, fill=mask), corruption.noisy)
    return corruption._replace(
        masked=corruption.masked | last,
        weights=corruption.weights.masked_fill(last, 1.0),
        noisy=noisy.masked_fill(last, mask),
        visible=corruption.visible & ~last,
    )


def insert_one(
    corruption: Corruption,
    windows: Tensor,
    draws: EditDraws,
    probability: float,
    random_ids: Tensor,
    delete_token_id: int,
) -> Corruption:
    """With `probability` insert one random token before a visible one of each window.

    Its target is `<|delete|>`. What follows moves one to the right with its targets, and what
    stood last in the window leaves the view, as it comes back when the token is deleted.
    """
    chosen = _choose(corruption.visible, windows, draws.insert, draws.insert_where, probability)
    moved = _reached(chosen, windows) & ~chosen

    def shift(x: Tensor) -> Tensor:
        return torch.where(moved, x.roll(1, dims=1), x)

    return Corruption(
        masked=shift(corruption.masked) & ~chosen,
        weights=shift(corruption.weights).masked_fill(chosen, 0.0),
        noisy=torch.where(chosen, random_ids, shift(corruption.noisy)),
        targets=shift(corruption.targets).masked_fill(chosen, delete_token_id),
        visible=shift(corruption.visible) | chosen,
    )


def _pick(ids: Tensor, draws: Tensor) -> Tensor:
    return ids[(draws * len(ids)).long().clamp(max=len(ids) - 1)]


def _choose(
    allowed: Tensor, windows: Tensor, draws: Tensor, where: Tensor, probability: float
) -> Tensor:
    """(B, L) bool: in each window, with `probability`, the allowed position of largest `where`."""
    count = int(windows.max()) + 1
    score = where.masked_fill(~allowed, -1.0)
    best = score.new_full((len(score), count), -1.0).scatter_reduce(1, windows, score, "amax")
    happens = draws.gather(1, _first_of(windows)) < probability  # one draw a window
    hit = allowed & happens & (score == best.gather(1, windows))
    return hit & (_count_before(hit, windows) == 0)  # of equal draws the leftmost


def _first_of(group: Tensor) -> Tensor:
    """(B, L) long: where the group of each position starts; groups are runs."""
    position = torch.arange(group.shape[1], device=group.device).expand_as(group)
    starts = torch.ones_like(group, dtype=torch.bool)
    starts[:, 1:] = group[:, 1:] != group[:, :-1]
    return position.masked_fill(~starts, 0).cummax(1).values


def _count_before(hit: Tensor, group: Tensor) -> Tensor:
    """How many hits of its own group stand left of each position."""
    before = hit.long().cumsum(1) - hit.long()
    return before - before.gather(1, _first_of(group))


def _reached(chosen: Tensor, group: Tensor) -> Tensor:
    """Positions at or right of a chosen one in the same group."""
    return (_count_before(chosen, group) > 0) | chosen


def _runs(windows: Tensor, visible: Tensor) -> Tensor:
    """A number for each run of visible positions of a window."""
    starts = torch.zeros_like(visible)
    starts[:, 1:] = (windows[:, 1:] != windows[:, :-1]) | (visible[:, 1:] != visible[:, :-1])
    return starts.long().cumsum(1)


def _shift_left(x: Tensor, fill: int) -> Tensor:
    """(B, L) with every value one further left and `fill` at the end."""
    return torch.cat([x[:, 1:], x.new_full((len(x), 1), fill)], dim=1)
