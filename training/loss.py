"""The bound: weighted cross entropy over masked positions only, and what it is divided by.

Knows no model and no noise. B rows, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
Nll = Callable[[Tensor, Tensor, Tensor], Tensor]


class Norm(NamedTuple):
    """How losses become one: each position's times its share, summed, divided by the divisor.

    Attributes:
        share: (B, L) float32, or one number for all. divisor: scalar, additive over batches.
    """

    share: Tensor | float
    divisor: Tensor


LossNorm = Callable[[Tensor, Tensor], Norm]


def per_token(maskable: Tensor, segments: Tensor) -> Norm:
    """Every maskable token counts alike, so that long texts count for more: the bound itself."""
    return Norm(1.0, maskable.sum())


def per_sequence(maskable: Tensor, segments: Tensor) -> Norm:
    """Every segment (a text, an answer) counts alike, however long; its tokens share that."""
    rows, length = maskable.shape  # no row has more segments than positions
    sizes = torch.zeros(rows, length + 1, device=maskable.device)
    sizes.scatter_add_(1, segments, maskable.float())
    return Norm(maskable / sizes.gather(1, segments).clamp(min=1), (sizes > 0).sum())


def per_batch(maskable: Tensor, segments: Tensor) -> Norm:
    """The sum, divided by the rows: a step with more tokens to learn weighs more."""
    return Norm(1.0, maskable.any(1).sum())


LOSS_NORMS: Mapping[str, LossNorm] = MappingProxyType(
    {"token": per_token, "sequence": per_sequence, "batch": per_batch}
)


def nll_of_logits(logits: Tensor, targets: Tensor, banned: Tensor) -> Tensor:
    """Negative log-likelihood (M,) float32 of `targets` (M,) under `logits` (M, V).

    Ids in `banned` get no probability: the mask and the other tokens that are never emitted.
    Written out so that a compiler makes one pass over the logits and keeps no float32 copy.
    """
    never = torch.zeros(logits.shape[1], device=logits.device)
    wide = logits.float() + never.index_fill(0, banned, -torch.inf)
    return wide.logsumexp(-1) - wide.gather(1, targets[:, None])[:, 0]


def weighted_loss(
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    head: Head,
    banned: Tensor,
    nll: Nll = nll_of_logits,
    chunk: int = 8192,
) -> Tensor:
    """Sum over masked rows of weight times NLL; divide it by the divisor of a loss norm.

    Rows are taken `chunk` at a time and recomputed in the backward pass, so that the float32
    logits of the whole batch never exist; a batch of one chunk is not recomputed.
    """

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        return nll(head(rows), wanted, banned)

    if len(hidden) <= chunk:
        return (part(hidden, targets) * weights).sum()
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        losses: Tensor = checkpoint(part, hidden[rows], targets[rows], use_reentrant=False)
        total = total + (losses * weights[rows]).sum()
    return total
