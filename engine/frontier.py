"""The frontiers of a batch's guided slots, as the denoising step needs them.

Legend: A slots of the batch, W positions of the widest block, G guided slots, V vocabulary, N
drawn tokens, R rows of the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusiongpt.engine.guide import Guide

# Far below any logit, and finite, as a banned token's is (`sampling.py`).
_NOT_ALLOWED = -1e30


class Frontier:
    """Where the guided slots of a batch may commit, and what.

    Args:
        guides: of every slot of the batch, None where it has no constraint.
        columns: of every slot, the frontier's place in its block.
        vocab_size: rows of the head's output.
    """

    def __init__(
        self,
        guides: Sequence[Guide | None],
        columns: Sequence[int],
        *,
        vocab_size: int,
        device: str,
    ) -> None:
        self._guides = guides
        guided = [row for row, guide in enumerate(guides) if guide is not None]
        sets = [guide.allowed() for guide in guides if guide is not None]
        # Minus one is no column: slots without a constraint have no frontier.
        marked = [-1 if guide is None else columns[row] for row, guide in enumerate(guides)]
        self._column = torch.tensor(marked, device=device)  # (A,)
        number = [guided.index(row) if row in guided else 0 for row in range(len(guides))]
        self._number = torch.tensor(number, device=device)  # (A,) which guided slot it is
        self._allowed = _as_mask(sets, vocab_size).to(device)  # (G, V)

    def restrict(self, logits: Tensor, row: Tensor, column: Tensor) -> None:
        """Leave only what is allowed at frontiers among the positions `column` (R,) of slots
        `row` (R,), in their logits (R, V), in place."""
        where = (column == self._column[row]).nonzero()[:, 0]
        allowed = self._allowed[self._number[row[where]]]
        logits[where] = logits[where].masked_fill(~allowed, _NOT_ALLOWED)

    def cut(self, chosen: Tensor) -> Tensor:
        """Of what is chosen (A, W) in guided slots, the unbroken run that begins at the frontier,
        which is always in it."""
        column = torch.arange(chosen.shape[1], device=chosen.device)
        frontier = self._column[:, None]
        run = (chosen | (column <= frontier)).to(torch.int8).cumprod(dim=1).bool()
        return torch.where(frontier >= 0, run & (column >= frontier), chosen)

    def accept(self, row: Tensor, token_id: Tensor) -> Tensor:
        """Which tokens (N,), drawn in slots `row` (N,) from left to right, are committed."""
        drawn: dict[int, list[int]] = {}
        rows = row.tolist()
        for each, token in zip(rows, token_id.tolist(), strict=True):
            drawn.setdefault(each, []).append(token)
        taken = {each: self._take(each, tokens) for each, tokens in drawn.items()}
        accepted, seen = [], dict.fromkeys(drawn, 0)
        for each in rows:
            accepted.append(seen[each] < taken[each])
            seen[each] += 1
        return torch.tensor(accepted, dtype=torch.bool, device=row.device)

    def _take(self, row: int, tokens: Sequence[int]) -> int:
        guide = self._guides[row]
        return len(tokens) if guide is None else guide.accept(tokens)


def _as_mask(sets: Sequence[int], vocab_size: int) -> Tensor:
    """Sets of token ids, as bits of integers, to (G, V) bool."""
    num_bytes = (vocab_size + 7) // 8
    data = bytearray(b"".join(each.to_bytes(num_bytes, "little") for each in sets))
    packed = torch.frombuffer(data, dtype=torch.uint8).view(len(sets), num_bytes, 1)
    bits = packed >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.view(len(sets), -1)[:, :vocab_size].bool()
