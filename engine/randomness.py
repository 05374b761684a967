"""Stateless counter-based random numbers: u = f(seed, purpose, position, visit, lane).

A request's randomness depends on nothing but its seed and its own positions: not on the slot,
the batch, the number of steps or what was skipped. `position` counts from the completion's
start, `visit` how often the position was masked before, `lane` is a token id. A token is drawn
per visit and not per step, so a position's noise stays the same until it is committed.

The mixing functions are the finalisers of SplitMix64 (Steele et al., 2014) and `lowbias32`
(Wellons, 2018), run in wrapping integer arithmetic, which every torch device does alike.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_A = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_B = -7723592293110705685  # 0x94D049BB133111EB
LANE_STEP = -1640531527  # 0x9E3779B9
LANE_A = 2146121005  # 0x7FEB352D
LANE_B = -2073254261  # 0x846CA68B
UNIT = 2.0**-32
ALMOST_ONE = 1.0 - 2.0**-24


class Purpose(IntEnum):
    """What a random number is for; different purposes never share one."""

    ORDER = 1  # hitting times
    DRAW = 2  # Gumbel noise of the token draw
    TIME = 3  # noise levels of a score
    MASK = 4  # which positions a score masks
    HIT = 6  # coins of a step that commits by chance
    REMASK = 7  # coins of a step that masks again by chance
    STATE = 5  # no randomness: the hash of a block, to know it again


def counter_keys(
    seed: Tensor, purpose: Purpose, position: Tensor, visit: Tensor | int = 0
) -> Tensor:
    """One 64-bit key per (seed, purpose, position, visit).

    Args:
        seed, position, visit: int64, broadcast against each other.

    Returns:
        int64 of the broadcast shape.
    """
    key = _mix64(seed + wrap_64(_GOLDEN * int(purpose)))
    key = _mix64(key ^ (position * _GOLDEN))
    turn = wrap_64((visit + 1) * _MIX_A) if isinstance(visit, int) else (visit + 1) * _MIX_A
    return _mix64(key + turn)


def uniform(keys: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) with 24 bits, one per key; float32 of the keys' shape."""
    return _shift_right_64(keys, 40).to(torch.float32) * 2.0**-24


def gumbel(keys: Tensor, num_lanes: int) -> Tensor:
    """Standard Gumbel noise for every lane of every key.

    Computed as -log(-log1p(-u)) with u in [2^-33, 1 - 2^-24]: large values, which decide a
    maximum, come from small u, where float32 is dense (the truncation that arXiv 2409.02908
    found in samplers is at the other end).

    Args:
        keys: (N,) int64.
        num_lanes: lanes 0..num_lanes-1, one per token id.

    Returns:
        (N, num_lanes) float32.
    """
    lanes = torch.arange(num_lanes, dtype=torch.int32, device=keys.device) * LANE_STEP
    low = keys.to(torch.int32)[:, None]
    high = _shift_right_64(keys, 32).to(torch.int32)[:, None]
    bits = _mix32(_mix32(lanes + low) + high)
    u = (bits.to(torch.int64) & 0xFFFFFFFF).to(torch.float32).add_(0.5).mul_(UNIT)
    return u.clamp_(max=ALMOST_ONE).neg_().log1p_().neg_().log_().neg_()


def wrap_64(value: int) -> int:
    """The value as a signed 64-bit integer, as tensors wrap by themselves."""
    return (value + 2**63) % 2**64 - 2**63


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shift_right_64(x, 30)) * _MIX_A
    x = (x ^ _shift_right_64(x, 27)) * _MIX_B
    return x ^ _shift_right_64(x, 31)


def _shift_right_64(x: Tensor, n: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix32(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * LANE_A
    x = (x ^ ((x >> 15) & 0x1FFFF)) * LANE_B
    return x ^ ((x >> 16) & 0xFFFF)
