"""Where the guided slots of a batch may commit, and what, as the denoising step needs it.

A guide that goes from left to right opens one position, its frontier; one that goes in any order
opens every masked position, and where a policy looks back at filled ones, keeps these in bounds.

Legend: A slots of the batch, W positions of the widest block, G guided slots, V vocabulary, N
drawn tokens, R rows of the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusiongpt.engine.guides import Guide

# Far below any logit, and finite, as a banned token's is (`sampling.py`).
_NOT_ALLOWED = -1e30


class Frontier:
    """Where the guided slots of a batch may commit, and what.

    Args:
        guides: of every slot of the batch, None where it has no constraint.
        blocks: of every slot, the completion's positions start..stop that its block has.
        looks_back: of every slot, whether its policy looks at filled positions.
        width: positions of the widest block.
        vocab_size: rows of the head's output.
    """

    def __init__(
        self,
        guides: Sequence[Guide | None],
        blocks: Sequence[tuple[int, int]],
        looks_back: Sequence[bool],
        *,
        width: int,
        vocab_size: int,
        device: str,
    ) -> None:
        self._guides, self._blocks = guides, blocks
        # Minus one is no column, and no set: slots without a constraint have none.
        frontier = [-1] * len(guides)
        number = [[-1] * width for _ in guides]
        sets: dict[int, int] = {}
        for row, (guide, (start, stop)) in enumerate(zip(guides, blocks, strict=True)):
            if guide is None:
                continue
            open_sets = guide.open_sets(start, stop)
            if guide.is_in_order:
                frontier[row] = max((each - start for each in open_sets), default=-1)
            held_sets = guide.held_sets(start, stop) if looks_back[row] else {}
            for position, allowed in (open_sets | held_sets).items():
                number[row][position - start] = sets.setdefault(allowed, len(sets))
        self._column = torch.tensor(frontier, device=device)  # (A,)
        self._number = torch.tensor(number, device=device)  # (A, W) which of the sets
        self._allowed = _as_mask(list(sets), vocab_size).to(device)  # (G, V)

    def restrict(self, logits: Tensor, row: Tensor, column: Tensor) -> None:
        """Leave only what is allowed at guided positions among `column` (R,) of slots `row` (R,),
        in their logits (R, V), in place."""
        number = self._number[row, column]
        where = (number >= 0).nonzero()[:, 0]
        allowed = self._allowed[number[where]]
        logits[where] = logits[where].masked_fill(~allowed, _NOT_ALLOWED)

    def cut(self, chosen: Tensor) -> Tensor:
        """Of what is chosen (A, W) in slots that go from left to right, the unbroken run that
        begins at the frontier, which is always in it."""
        column = torch.arange(chosen.shape[1], device=chosen.device)
        frontier = self._column[:, None]
        run = (chosen | (column <= frontier)).to(torch.int8).cumprod(dim=1).bool()
        return torch.where(frontier >= 0, run & (column >= frontier), chosen)

    def release(self, remasked: Tensor) -> None:
        """Tell the guides which filled positions (A, W) are masked again."""
        positions: dict[int, list[int]] = {}
        for row, column in remasked.nonzero().tolist():
            positions.setdefault(row, []).append(self._blocks[row][0] + column)
        for row, theirs in positions.items():
            if (guide := self._guides[row]) is not None:
                guide.release(theirs)

    def accept(self, row: Tensor, column: Tensor, token_id: Tensor, sureness: Tensor) -> Tensor:
        """Which tokens (N,), drawn at `column` (N,) of slots `row` (N,) from left to right, are
        committed; the model was so sure (N,) of each before it drew."""
        drawn: dict[int, list[tuple[int, int, float]]] = {}
        rows = row.tolist()
        for each, *draw in zip(
            rows, column.tolist(), token_id.tolist(), sureness.tolist(), strict=True
        ):
            drawn.setdefault(each, []).append((draw[0], draw[1], draw[2]))
        accepted = [
            taken for each, draws in drawn.items() for taken in self._take(each, draws)
        ]  # rows come in order
        return torch.tensor(accepted, dtype=torch.bool, device=row.device)

    def _take(self, row: int, draws: Sequence[tuple[int, int, float]]) -> list[bool]:
        guide, (start, _) = self._guides[row], self._blocks[row]
        if guide is None:
            return [True] * len(draws)
        columns, tokens, sureness = zip(*draws, strict=True)
        return guide.accept_at([start + each for each in columns], tokens, sureness)


def _as_mask(sets: Sequence[int], vocab_size: int) -> Tensor:
    """Sets of token ids, as bits of integers, to (G, V) bool."""
    if not sets:
        # Of a guided canvas all that is left to fill may be in holes without a language.
        return torch.zeros(0, vocab_size, dtype=torch.bool)
    num_bytes = (vocab_size + 7) // 8
    data = bytearray(b"".join(each.to_bytes(num_bytes, "little") for each in sets))
    packed = torch.frombuffer(data, dtype=torch.uint8).view(len(sets), num_bytes, 1)
    bits = packed >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.view(len(sets), -1)[:, :vocab_size].bool()
