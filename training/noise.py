"""The forward process: which positions are masked, and what each of them weighs.

Pure functions of a generator that the caller passes in. B rows, L positions, K blocks per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from diffusiongpt.training.schedules import mean_rate, noise_levels

MIN_TIME = 1e-3


def keyed_generator(seed: int, step: int, purpose: int = 0) -> torch.Generator:
    """A generator of (seed, step, purpose) alone: workers and resume change nothing."""
    mixed = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB
    mixed += purpose * 0xD6E8FEB86659FD93
    return torch.Generator().manual_seed(mixed % (1 << 63))


def stratified_times(count: int, generator: torch.Generator) -> Tensor:
    """One time in each of `count` equal parts of (0, 1], in random order, clamped to 1e-3."""
    offset = torch.rand(count, generator=generator, dtype=torch.float64)
    times = (torch.randperm(count, generator=generator) + offset) / count
    return times.clamp(MIN_TIME, 1.0)


def independent_times(count: int, generator: torch.Generator) -> Tensor:
    """Times that know nothing of each other, uniform on (0, 1], clamped to 1e-3."""
    return (1 - torch.rand(count, generator=generator, dtype=torch.float64)).clamp(min=MIN_TIME)


TIME_SAMPLINGS: Mapping[str, Callable[[int, torch.Generator], Tensor]] = MappingProxyType(
    {"stratified": stratified_times, "independent": independent_times}
)


def corrupt(
    maskable: Tensor,
    rates: Tensor,
    scores: Tensor,
    noise: str = "exact_count",
    slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask each block of a batch at its own rate r.

    `bernoulli` masks each position with probability r and weighs it r'/r. `exact_count` masks
    k = ceil(r n) of the block's n maskable positions and weighs them r' n/k: the same bound (the
    times at which k is drawn weigh 1/n in all), a lower variance, and never a block without a
    target.

    Args:
        maskable: (B, L) bool, positions that may be masked.
        rates: (B, K) float, K divides L; with the linear schedule these are the times.
        scores: (B, L) float in [0, 1), what decides which positions are masked.
        noise: `exact_count` or `bernoulli`.
        slopes: r', broadcasts with (B, K); 1 by default, as with the linear schedule.

    Returns:
        masked (B, L) bool and weight (B, L) float32, zero where not masked.
    """
    rows, length = maskable.shape
    shape = (rows, rates.shape[1], length // rates.shape[1])
    blocks = maskable.view(shape)  # (B, K, L/K)
    if noise == "bernoulli":
        masked = (scores.view(shape) < rates[..., None]) & blocks
        weight = masked / rates[..., None]
    else:
        size = blocks.sum(-1, keepdim=True)  # (B, K, 1) n
        count = (rates[..., None] * size).ceil().clamp(min=1)  # (B, K, 1) k
        rank = scores.view(shape).masked_fill(~blocks, 2.0).argsort(-1).argsort(-1)
        masked = (rank < count) & blocks
        weight = masked * (size / count)
    if slopes is not None:
        weight = weight * slopes.expand_as(rates)[..., None]
    return masked.view(rows, length), weight.view(rows, length).float()


def block_length_at(step: int, lengths: Sequence[int], seed: int) -> int:
    """The block length of a step: as many steps as there are lengths have each of them once.

    A function of the step and the seed alone, so it is the same on every process and after a
    resume; the order changes from round to round.
    """
    turn, place = divmod(step, len(lengths))
    generator = keyed_generator(seed, turn, purpose=3)
    return lengths[int(torch.randperm(len(lengths), generator=generator)[place])]


def draw_corruption(
    maskable: Tensor,
    block_length: int,
    noise: str,
    seed: int,
    step: int,
    first_row: int,
    num_rows: int,
    *,
    schedule: str = "linear",
    time_sampling: str = "stratified",
    num_steps: int | None = None,
    time_weighting: bool = True,
) -> tuple[Tensor, Tensor]:
    """Corrupt rows `first_row..first_row+B` of a global batch of `num_rows` rows.

    The draw is made for the whole global batch and cut, so that it is the same however the batch
    is split between workers and accumulation steps, and t can be stratified over all of it.

    Args:
        schedule, num_steps: as in `noise_levels`. time_sampling: a name in TIME_SAMPLINGS.
        time_weighting: False weighs every masked position alike, so that the weights of a batch
            still add up to its maskable positions on average.
    """
    batch, length = maskable.shape
    blocks = length // block_length
    generator = keyed_generator(seed, step)
    times = TIME_SAMPLINGS[time_sampling](num_rows * blocks, generator).view(num_rows, blocks)
    scores = torch.rand(num_rows, length, generator=generator)
    rows = slice(first_row, first_row + batch)
    device = maskable.device
    rates, slopes = noise_levels(times[rows].to(device), schedule, block_length, num_steps)
    masked, weights = corrupt(maskable, rates, scores[rows].to(device), noise, slopes)
    return masked, weights if time_weighting else masked / mean_rate(schedule, block_length)
