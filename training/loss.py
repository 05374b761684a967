"""The bound: weighted cross entropy over masked positions only. Knows no model and no noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
Nll = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    """Sum over masked rows of weight times NLL; divide it by the number of maskable tokens.

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
