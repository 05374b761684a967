"""Which masked positions are committed in this step. Pure tensor functions, all slots at once.

Shapes: A slots of the batch, W positions of the widest block; rows shorter than W are padded
with positions that are not candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusiongpt.engine.rows import RowStatistics


@dataclass(frozen=True, slots=True)
class PolicyRows:
    """The parameters of each slot's policy, (A,) each; see `policies.Policy`.

    `adaptive` and `timed` are bool, `gap`, `stable`, `max_per_step` and `max_least` are int64, the
    rest float32; `log_threshold` is the logarithm of the probability threshold.
    """

    confidence: Tensor
    margin: Tensor
    entropy: Tensor
    hitting_time: Tensor
    position_bias: Tensor
    credit: Tensor
    log_threshold: Tensor
    factor: Tensor
    entropy_bound: Tensor
    max_per_step: Tensor
    max_share: Tensor
    max_least: Tensor
    adaptive: Tensor
    timed: Tensor
    stable: Tensor
    gap: Tensor


def score_candidates(
    policy: PolicyRows, statistics: RowStatistics, hitting: Tensor, candidate: Tensor
) -> Tensor:
    """Score (A, W), higher first, -inf for what is no candidate."""
    column = torch.arange(candidate.shape[1], device=candidate.device)
    leftmost = candidate.to(torch.int8).argmax(dim=1, keepdim=True)
    score = (
        policy.confidence[:, None] * statistics.log_top
        + policy.margin[:, None] * statistics.margin
        - policy.entropy[:, None] * statistics.entropy
        + policy.hitting_time[:, None] * hitting
        - policy.position_bias[:, None] * (column - leftmost)
    )
    return score.masked_fill(~candidate, -torch.inf)


def choose_positions(
    policy: PolicyRows,
    statistics: RowStatistics,
    hitting: Tensor,
    candidate: Tensor,
    *,
    at_least: Tensor,
    time: Tensor,
    max_gap: int,
    steady: Tensor | None = None,
) -> Tensor:
    """Choose the positions to commit: the longest run of ranks within the gates, or `at_least`.

    Args:
        policy: parameters per slot.
        statistics: of every position, (A, W).
        hitting: (A, W) hitting time of every position.
        candidate: (A, W) bool, positions that may be committed.
        at_least: (A,) how many the step budget asks for.
        time: (A,) the time t after this step; a timed policy commits hitting times >= t.
        max_gap: the largest `gap` in the batch.
        steady: (A, W) bool, positions that rank before all others, which pass no gate.

    Returns:
        (A, W) bool, a subset of `candidate`. Ties go to the leftmost position.
    """
    rank = ranks(score_candidates(policy, statistics, hitting, candidate))
    if steady is not None:
        rank = ranks(-(rank + candidate.shape[1] * (~steady).long()))
    spaced = candidate & is_spaced(rank, candidate, policy.gap, max_gap)
    width = candidate.shape[1]
    # Candidates that keep the gap come first, then the others, then what is no candidate.
    tier = 2 - candidate.to(torch.int64) - spaced.to(torch.int64)
    order = (rank + width * tier).argsort(dim=-1, stable=True)
    allowed = spaced if steady is None else spaced & steady
    passed = within_gates(policy, statistics, hitting, allowed, order, time)
    place = torch.arange(width, device=order.device)
    passed &= place < most_commits(policy, candidate.sum(dim=1))[:, None]
    chosen_in_order = passed | (place < at_least[:, None])
    chosen = torch.zeros_like(candidate).scatter_(1, order, chosen_in_order)
    return chosen & candidate


def within_gates(
    policy: PolicyRows,
    statistics: RowStatistics,
    hitting: Tensor,
    allowed: Tensor,
    order: Tensor,
    time: Tensor,
) -> Tensor:
    """Which ranks lie in the unbroken run that passes every gate, (A, W) bool in rank order."""
    entropy = statistics.entropy.gather(1, order)
    # EB-sampler (arXiv 2505.24857): the joint entropy is at most the sum, and at least the maximum
    spent = entropy.cumsum(dim=-1) - entropy.cummax(dim=-1).values
    log_top = statistics.log_top.gather(1, order)
    # Fast-dLLM's factor rule (arXiv 2505.22618) for n = 1, 2, ... in order
    count = torch.arange(1, order.shape[1] + 1, device=order.device)
    doubt = (count + 1) * -torch.expm1(log_top)
    gates = (
        allowed.gather(1, order)
        & (policy.adaptive | policy.timed)[:, None]
        & (log_top > policy.log_threshold[:, None])
        & (doubt < policy.factor[:, None])
        & (spent <= policy.entropy_bound[:, None])
        & (~policy.timed[:, None] | (hitting.gather(1, order) >= time[:, None]))
    )
    return gates.to(torch.int8).cumprod(dim=-1).bool()


def most_commits(policy: PolicyRows, num_candidates: Tensor) -> Tensor:
    """How many positions the gates may let pass (A,), min(max(share n, least), most) of n (A,)
    candidates (WINO, arXiv 2507.18578)."""
    share = (policy.max_share * num_candidates).long().maximum(policy.max_least)
    is_limited = policy.max_per_step > 0
    return torch.where(is_limited, share.minimum(policy.max_per_step), num_candidates)


def ranks(score: Tensor) -> Tensor:
    """Rank of every position in its row, 0 for the highest score; ties leftmost first."""
    # Ranks, and not topk: k differs from row to row, and reading it would stop a GPU.
    return score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def is_spaced(rank: Tensor, candidate: Tensor, gap: Tensor, max_gap: int) -> Tensor:
    """Whether a position outranks every candidate closer than its slot's `gap`, (A, W) bool."""
    spaced = torch.ones_like(candidate)
    for distance in range(1, min(max_gap, candidate.shape[1])):
        left_wins = rank[:, :-distance] < rank[:, distance:]
        close = gap[:, None] > distance
        both = candidate[:, :-distance] & candidate[:, distance:] & close
        spaced[:, distance:] &= ~(both & left_wins)
        spaced[:, :-distance] &= ~(both & ~left_wins)
    return spaced


def commits_due(num_masked: Tensor, steps_left: Tensor) -> Tensor:
    """Commits that a budget asks of this step, the remainder first: 5 in 3 steps are 2, 2, 1.

    Args:
        num_masked: (A,) int64. steps_left: (A,) int64, this step included.
    """
    return -(-num_masked // steps_left.clamp(min=1))
