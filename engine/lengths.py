"""Holes of automatic length: several lengths side by side, the likeliest filling wins.

How many masks a hole has decides how good its filling can be, more than the sampler does. A mean
over tokens and not a sum, because a sum would favour short fillings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.completion import Completion
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.params import GenerationParams

MAX_CANDIDATES = 16


def with_lengths(infill: Infill) -> list[Infill]:
    """The infill with each length that its automatic hole may have; itself if it has none.

    Raises:
        InvalidRequest: several holes of automatic length, or candidates that cannot be tried.
    """
    hole = _automatic_hole(infill)
    if hole is None:
        return [infill]
    if not 1 <= len(hole.candidates) <= MAX_CANDIDATES:
        raise InvalidRequest(
            f"a hole may have 1 to {MAX_CANDIDATES} candidates for its length, "
            f"got {len(hole.candidates)}",
            "prompt",
        )
    return [
        Infill(*(fixed if part is hole else part for part in infill.parts))
        for fixed in (dataclasses.replace(hole, length=each) for each in hole.candidates)
    ]


def _automatic_hole(infill: Infill) -> Hole | None:
    holes = [part for part in infill.parts if isinstance(part, Hole) and part.is_automatic]
    if len(holes) > 1:
        raise InvalidRequest(
            f"one hole of an infill may have an automatic length, got {len(holes)}; "
            "give the others a length",
            "prompt",
        )
    return holes[0] if holes else None


def limit_steps(params: GenerationParams, infill: Infill) -> GenerationParams:
    """A step budget for all lengths, cut to the positions that one of them has to fill."""
    if params.steps is None:
        return params
    lengths = [part.length for part in infill.parts if isinstance(part, Hole)]
    total = sum(length for length in lengths if isinstance(length, int))
    return params.replace(steps=max(1, min(params.steps, total)))


def best_length(infill: Infill, tried: Sequence[Completion]) -> Completion:
    """The likeliest of the completions that `with_lengths` led to, the first one of equals.

    Its `lengths` lists what was tried, if the infill has an automatic hole.
    """
    hole = _automatic_hole(infill)
    if hole is None:
        return tried[0]
    scores = tuple(each.mean_log_prob for each in tried)
    best = tried[scores.index(max(scores))]
    return dataclasses.replace(best, lengths=tuple(zip(hole.candidates, scores, strict=True)))
