"""Noise schedules: the share of masked positions at time t, and how fast it grows.

With mask rate r(t), r(0) = 0 and r(1) = 1, the bound is the mean over t of r'(t) / r(t) times the
cross entropy summed over masked positions (MDLM, arXiv 2406.07524, eq. 7, alpha = 1 - r).
Over T steps of a grid, r' becomes T (r(t) - r(t - 1/T)): the bound of a process of T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

Schedule = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def linear(times: Tensor, block_length: int) -> tuple[Tensor, Tensor]:
    """r = t, r' = 1."""
    return times, times.new_ones(())


def cosine(times: Tensor, block_length: int) -> tuple[Tensor, Tensor]:
    """r = sin(pi t / 2): more of the time is spent on texts that are mostly masked."""
    angle = times * (math.pi / 2)
    return angle.sin(), angle.cos() * (math.pi / 2)


def clipped(times: Tensor, block_length: int) -> tuple[Tensor, Tensor]:
    """r = max(t, 1/B) in blocks of B: what is expected is never less than one masked position.

    Weighed 1/r (Stable-DiffCoder's block-clipped rate): the times below 1/B stand for 1/B, where
    a position is not easier than at its own time, so the figure stays a bound.
    """
    return times.clamp(min=1 / block_length), times.new_ones(())


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {"linear": linear, "cosine": cosine, "clipped": clipped}
)


def noise_levels(
    times: Tensor, schedule: str, block_length: int, num_steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mask rates and their slopes at `times` in (0, 1], any shape, float64.

    Args:
        schedule: a name in SCHEDULES. block_length: of the blocks that share a time.
        num_steps: rounds the times up to a grid of so many; None leaves them.

    Returns:
        rates in the shape of `times`, and slopes that broadcast with them.
    """
    rate_of = SCHEDULES[schedule]
    if num_steps is None:
        return rate_of(times, block_length)
    place = (times * num_steps).ceil().clamp(1, num_steps)
    rates, slopes = rate_of(place / num_steps, block_length)
    if schedule != "cosine":  # both other slopes are those of the grid as they are
        return rates, slopes
    return rates, (rates - rate_of((place - 1) / num_steps, block_length)[0]) * num_steps


def mean_rate(schedule: str, block_length: int) -> float:
    """The mask rate averaged over t: what an unweighted loss is divided by."""
    if schedule == "cosine":
        return 2 / math.pi
    return 0.5 if schedule == "linear" else 0.5 + 0.5 / block_length**2
