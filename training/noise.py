"""The forward process: which positions are masked, and what each of them weighs.

Pure functions of a generator that the caller passes in. B rows, L positions, K blocks per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_TIME = 1e-3


def keyed_generator(seed: int, step: int) -> torch.Generator:
    """A generator that depends on (seed, step) alone: workers and resume change nothing."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


def stratified_times(count: int, generator: torch.Generator) -> Tensor:
    """One time in each of `count` equal parts of (0, 1], in random order, clamped to 1e-3."""
    offset = torch.rand(count, generator=generator, dtype=torch.float64)
    times = (torch.randperm(count, generator=generator) + offset) / count
    return times.clamp(MIN_TIME, 1.0)


def corrupt(
    maskable: Tensor, times: Tensor, scores: Tensor, noise: str = "exact_count"
) -> tuple[Tensor, Tensor]:
    """Mask each block of a batch at its own time.

    `bernoulli` masks each position with probability t and weighs it 1/t. `exact_count` masks
    k = ceil(t n) of the block's n maskable positions and weighs them n/k: the same bound (t is
    uniform, so k is), a lower variance, and never a block without a target.

    Args:
        maskable: (B, L) bool, positions that may be masked.
        times: (B, K) float, K divides L.
        scores: (B, L) float in [0, 1), what decides which positions are masked.
        noise: `exact_count` or `bernoulli`.

    Returns:
        masked (B, L) bool and weight (B, L) float32, zero where not masked.
    """
    rows, length = maskable.shape
    shape = (rows, times.shape[1], length // times.shape[1])
    blocks = maskable.view(shape)  # (B, K, L/K)
    if noise == "bernoulli":
        masked = (scores.view(shape) < times[..., None]) & blocks
        weight = masked / times[..., None]
    else:
        size = blocks.sum(-1, keepdim=True)  # (B, K, 1) n
        count = (times[..., None] * size).ceil().clamp(min=1)  # (B, K, 1) k
        rank = scores.view(shape).masked_fill(~blocks, 2.0).argsort(-1).argsort(-1)
        masked = (rank < count) & blocks
        weight = masked * (size / count)
    return masked.view(rows, length), weight.view(rows, length).float()


def draw_corruption(
    maskable: Tensor,
    block_length: int,
    noise: str,
    seed: int,
    step: int,
    first_row: int,
    num_rows: int,
) -> tuple[Tensor, Tensor]:
    """Corrupt rows `first_row..first_row+B` of a global batch of `num_rows` rows.

    The draw is made for the whole global batch and cut, so that it is the same however the batch
    is split between workers and accumulation steps, and t is stratified over all of it.
    """
    batch, length = maskable.shape
    blocks = length // block_length
    generator = keyed_generator(seed, step)
    times = stratified_times(num_rows * blocks, generator).view(num_rows, blocks)
    scores = torch.rand(num_rows, length, generator=generator)
    rows = slice(first_row, first_row + batch)
    device = maskable.device
    return corrupt(maskable, times[rows].to(device), scores[rows].to(device), noise)
