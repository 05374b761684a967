"""Which filled positions of a block are revised in this step: edited, or masked again.

Pure tensor functions.

Shapes: A slots of the batch, W positions of the widest block, R recorded states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusiongpt.engine.commit import ranks
from diffusiongpt.engine.randomness import Purpose, counter_keys
from diffusiongpt.engine.rows import RowStatistics


@dataclass(frozen=True, slots=True)
class RevisionRows:
    """How each slot revises, (A,) each; see `policies.Policy`.

    `log_edit_threshold`, `log_edit_margin` and `log_doubt` are logarithms of what the policy
    says; `shadowed`, `planned`, `tosses` and `remask_rescaled` are bool, `max_rounds` is int64.
    """

    log_edit_threshold: Tensor
    log_edit_margin: Tensor
    log_doubt: Tensor
    shadowed: Tensor
    planned: Tensor
    tosses: Tensor
    remask: Tensor
    remask_rescaled: Tensor
    remask_confidence: Tensor
    loop_start: Tensor
    loop_end: Tensor
    loop_alpha: Tensor
    max_rounds: Tensor


def choose_edits(
    revision: RevisionRows, statistics: RowStatistics, held: Tensor, filled: Tensor
) -> Tensor:
    """Filled positions whose most likely token is another one, by far enough (arXiv 2602.08676).

    Args:
        statistics: of every position, (A, W). held: (A, W) the token ids they hold.
        filled: (A, W) bool, positions that may be edited.
    """
    is_other = statistics.top_id != held
    is_sure = statistics.log_top > revision.log_edit_threshold[:, None]
    gain = statistics.log_top - statistics.log_held
    return filled & is_other & is_sure & (gain >= revision.log_edit_margin[:, None])


def choose_doubted(
    revision: RevisionRows,
    statistics: RowStatistics,
    filled: Tensor,
    is_full: Tensor,
    most: Tensor,
) -> Tensor:
    """Filled positions (A, W) whose token has too little probability: of a full block all, of
    another one, where shadows are cast, at most so many (A,), the least likely first (WINO,
    arXiv 2507.18578)."""
    doubted = filled & (statistics.log_held < revision.log_doubt[:, None])
    rank = ranks((-statistics.log_held).masked_fill(~doubted, -torch.inf))
    within = revision.shadowed[:, None] & (rank < most[:, None])
    return doubted & (is_full[:, None] | within)


def filled_share(revision: RevisionRows, time: Tensor) -> Tensor:
    """alpha(t), the expected share of filled positions at time (A,); it stands still in a loop."""
    before = (1.0 - time) * revision.loop_alpha / (1.0 - revision.loop_start)
    left = time / revision.loop_end.clamp(min=1e-6)
    after = 1.0 - left * (1.0 - revision.loop_alpha)
    inside = torch.where(time > revision.loop_end, revision.loop_alpha, after)
    return torch.where(time > revision.loop_start, before, inside)


def remask_chances(revision: RevisionRows, step: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """(A,) chances of a filled position to be masked again in this step, and of a masked one to
    be filled, such that alpha(t) stays the filled share (ReMDM, arXiv 2503.00307, eq. 5-6)."""
    time = 1.0 - (step - 1) / steps
    later = 1.0 - step / steps
    alpha, alpha_later = filled_share(revision, time), filled_share(revision, later)
    most = ((1.0 - alpha_later) / alpha.clamp(min=1e-6)).clamp(max=1.0)
    eta = revision.remask
    remask = torch.where(revision.remask_rescaled, eta * most, eta.minimum(most))
    in_loop = (time <= revision.loop_start) & (later >= revision.loop_end)
    remask = remask * ((revision.loop_alpha >= 1.0) | in_loop)
    fill = (alpha_later - (1.0 - remask) * alpha) / (1.0 - alpha).clamp(min=1e-6)
    return remask, fill.clamp(0.0, 1.0)


def toss_remasks(
    revision: RevisionRows, chance: Tensor, confidence: Tensor, filled: Tensor, coin: Tensor
) -> Tensor:
    """Filled positions (A, W) whose coin falls for the mask.

    Args:
        chance: (A,) mean chance of a filled position; `remask_confidence` shifts it towards
            those committed with little confidence, by a softmax of minus their probability.
        confidence: (A, W) probability of each token when it was committed.
        coin: (A, W) uniform numbers.
    """
    doubt = -revision.remask_confidence[:, None] * confidence
    weight = doubt.masked_fill(~filled, -torch.inf).softmax(dim=-1)
    weight = weight * filled.sum(dim=1, keepdim=True)  # nan where nothing is filled
    return filled & revision.tosses[:, None] & (coin < chance[:, None] * weight)


def choose_kept(
    statistics: RowStatistics, masked: Tensor, filled: Tensor, step: Tensor, steps: Tensor
) -> Tensor:
    """P2's plan (arXiv 2502.03540): of all positions, masked ones by their top probability and
    filled ones by that of their token, the best step/steps, (A, W) bool."""
    probability = torch.where(masked, statistics.log_top, statistics.log_held)
    either = masked | filled
    total = either.sum(dim=1)
    num_kept = total - total * (steps - step) // steps
    rank = ranks(probability.masked_fill(~either, -torch.inf))
    return either & (rank < num_kept[:, None])


def state_keys(ids: Tensor, inside: Tensor) -> Tensor:
    """One 64-bit key per row of token ids (A, W), of the positions `inside` alone."""
    column = torch.arange(ids.shape[1], device=ids.device)
    return (counter_keys(ids, Purpose.STATE, column) * inside).sum(dim=1)


def was_seen(key: Tensor, seen: Tensor, num_seen: Tensor) -> Tensor:
    """Whether a row's key (A,) is among the first `num_seen` (A,) of those recorded (A, R)."""
    is_recorded = torch.arange(seen.shape[1], device=seen.device) < num_seen[:, None]
    return ((seen == key[:, None]) & is_recorded).any(dim=1)
