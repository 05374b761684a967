"""A draft: text that a completion begins with instead of masks, and how much of it is redone.

Torch-free. Which positions are masked again is found out in `doubt.py`, when the request has its
slot; how many is known here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from diffusiongpt.engine.errors import InvalidRequest

Pick = Literal["doubtful", "random"]
DEFAULT_STRENGTH = 0.5


@dataclass(frozen=True, slots=True)
class Draft:
    """A text to refine.

    Attributes:
        text: the text or its token ids, the first positions of the completion. Those after it,
            up to `max_tokens`, are masked as ever.
        strength: rho, the share of the draft's positions that are masked and denoised again, as
            SDEdit (arXiv 2108.01073) adds noise to an image: 1 keeps no token, and 0 every one
            that is not edited.
        pick: which. "doubtful": those that the model finds least likely. "random": those that
            the seed has `ancestral` fill last, so that denoising begins at time rho.
    """

    text: str | tuple[int, ...]
    strength: float = DEFAULT_STRENGTH
    pick: Pick = "doubtful"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str | tuple | list):
            raise InvalidRequest(f"a draft must be text or token ids, got {self.text!r}", "draft")
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", tuple(self.text))
        if not self.text:
            raise InvalidRequest("a draft must have at least one token, got none", "draft")
        is_number = isinstance(self.strength, int | float) and not isinstance(self.strength, bool)
        if not is_number or not 0.0 <= self.strength <= 1.0:
            raise InvalidRequest(
                f"strength must be a number in [0, 1], got {self.strength!r}", "strength"
            )
        if self.pick not in get_args(Pick):
            accepted = " or ".join(get_args(Pick))
            raise InvalidRequest(f"pick must be {accepted}, got {self.pick!r}", "pick")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """A draft as a request has it: its token ids, and how many of them are masked again."""

    token_ids: tuple[int, ...]
    num_masked: int
    pick: Pick

    @property
    def num_kept(self) -> int:
        """Tokens that the completion begins with."""
        return len(self.token_ids) - self.num_masked

    @property
    def needs_look(self) -> bool:
        """Whether the model must look at the draft before anything is masked."""
        return self.pick == "doubtful" and 0 < self.num_masked < len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedDraft:
    """A draft as its completion begins.

    Attributes:
        token_ids: the draft's. masked: its positions that are masked, in order.
        confidence: of every token, its probability where the model looked; 1 where it did not.
        num_looks: canvases that the model computed for it.
    """

    token_ids: tuple[int, ...]
    masked: tuple[int, ...]
    confidence: tuple[float, ...]
    num_looks: int = 0

    @property
    def kept(self) -> tuple[int, ...]:
        """Positions that hold the draft's token."""
        masked = set(self.masked)
        return tuple(each for each in range(len(self.token_ids)) if each not in masked)


def plan_draft(
    draft: Draft, token_ids: tuple[int, ...], *, max_tokens: int, vocab_size: int
) -> DraftPlan:
    """Check a draft's token ids against the completion's length and the vocabulary.

    A strength above 0 masks one position at least.

    Raises:
        InvalidRequest: an empty draft, one that is too long, or ids that are none.
    """
    if not token_ids:
        raise InvalidRequest("a draft must have at least one token, got none", "draft")
    for token_id in token_ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise InvalidRequest(f"a draft must hold token ids, got {token_id!r}", "draft")
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"a draft's token ids must be in 0..{vocab_size - 1}, got {token_id}", "draft"
            )
    if len(token_ids) > max_tokens:
        raise InvalidRequest(
            f"a draft must fit max_tokens={max_tokens}, got {len(token_ids)} tokens", "draft"
        )
    # 1e-9: a share such as 0.1 of 30 is 3 positions, whatever floating point makes of it.
    num_masked = math.ceil(draft.strength * len(token_ids) - 1e-9)
    return DraftPlan(token_ids=token_ids, num_masked=num_masked, pick=draft.pick)
