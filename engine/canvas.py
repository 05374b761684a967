"""What a request's canvas holds at the start: a prompt, a region with masks, a suffix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import InvalidRequest

MAX_HOLES = 64
MAX_POSITIONS = 1_000_000


@dataclass(frozen=True, slots=True)
class Hole:
    """A stretch of masked positions, to be filled.

    Attributes:
        length: how many; "auto" (or None) tries the candidates side by side and keeps the one
            whose committed tokens have the best mean log-probability.
        candidates: the lengths to try.
        constraint: the language that its text is a word of; None is the request's, if it has one.
    """

    length: int | Literal["auto"] | None
    candidates: tuple[int, ...] = (4, 8, 16, 32)
    constraint: Constraint | None = None

    @property
    def is_automatic(self) -> bool:
        """Whether the length is to be found."""
        return self.length is None or self.length == "auto"


@dataclass(frozen=True, slots=True, init=False)
class Infill:
    """A prompt with holes: texts (or token ids) and `Hole`s in the order of the text.

    >>> Infill("Once upon a time", Hole(8), "lived happily ever after.")
    """

    parts: tuple[str | Sequence[int] | Hole, ...]

    def __init__(self, *parts: str | Sequence[int] | Hole) -> None:
        object.__setattr__(self, "parts", parts)

    @property
    def holes(self) -> tuple[Hole, ...]:
        """The holes, in order."""
        return tuple(part for part in self.parts if isinstance(part, Hole))

    @property
    def is_automatic(self) -> bool:
        """Whether some hole's length is to be found."""
        return any(isinstance(part, Hole) and part.is_automatic for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """Token ids of a canvas; None is a mask.

    Attributes:
        prompt: before the region. region: from the first mask to the last, what is between
            masks included. suffix: after it; only a bidirectional model sees that.
        cuts: positions in the region where two holes of different constraints touch.
    """

    prompt: tuple[int, ...]
    region: tuple[int | None, ...]
    suffix: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()

    @classmethod
    def of_completion(cls, prompt: Sequence[int], length: int) -> Canvas:
        """A prompt and `length` masks."""
        return cls(prompt=tuple(prompt), region=(None,) * length)

    @classmethod
    def of_parts(cls, parts: Sequence[Sequence[int] | Hole]) -> Canvas:
        """Token ids and holes in order. Holes that touch are one if they have one constraint or
        none, and each a text of its own if they have not the same.

        Raises:
            InvalidRequest: no hole, too many of them, or one without a position.
        """
        holes = [part for part in parts if isinstance(part, Hole)]
        if not 1 <= len(holes) <= MAX_HOLES:
            raise InvalidRequest(
                f"an infill must have 1 to {MAX_HOLES} holes, got {len(holes)}", "prompt"
            )
        ids: list[int | None] = []
        cuts: list[int] = []
        touching: Hole | None = None
        for part in parts:
            if isinstance(part, Hole):
                if touching is not None and touching.constraint != part.constraint:
                    cuts.append(len(ids))
                ids += [None] * _checked_length(part)
                touching = part
            elif None in part:
                raise InvalidRequest("a text between holes must hold token ids, got None", "prompt")
            elif len(part):
                ids += part
                touching = None
            if len(ids) > MAX_POSITIONS:
                raise InvalidRequest(
                    f"texts and holes may make {MAX_POSITIONS} tokens at most", "prompt"
                )
        first = ids.index(None)
        last = len(ids) - ids[::-1].index(None)
        return cls(
            prompt=tuple(each for each in ids[:first] if each is not None),
            region=tuple(ids[first:last]),
            suffix=tuple(each for each in ids[last:] if each is not None),
            cuts=tuple(each - first for each in cuts),
        )

    @property
    def given(self) -> tuple[tuple[int, int], ...]:
        """(position in the region, token id) of what is given between masks."""
        return tuple((p, each) for p, each in enumerate(self.region) if each is not None)

    @property
    def num_masked(self) -> int:
        """Positions to fill."""
        return self.region.count(None)

    @property
    def num_given(self) -> int:
        """Tokens of the canvas that the request brought along."""
        return len(self.prompt) + len(self.region) - self.num_masked + len(self.suffix)

    @property
    def is_infill(self) -> bool:
        """Whether anything is given after the first mask."""
        return bool(self.suffix) or self.num_masked < len(self.region)

    @property
    def known(self) -> tuple[int, ...]:
        """Every given token id, in order."""
        between = tuple(each for each in self.region if each is not None)
        return (*self.prompt, *between, *self.suffix)

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        """Runs of masks as (start, stop) in the region, cut where two constraints meet."""
        spans: list[tuple[int, int]] = []
        for position, each in enumerate(self.region):
            if each is not None:
                continue
            if spans and spans[-1][1] == position and position not in self.cuts:
                spans[-1] = (spans[-1][0], position + 1)
            else:
                spans.append((position, position + 1))
        return tuple(spans)


def constraints_of(parts: Sequence[Sequence[int] | Hole]) -> list[Constraint | None]:
    """Of every hole of the canvas of `parts` its constraint; see `Canvas.of_parts`."""
    constraints: list[Constraint | None] = []
    touches = False
    for part in parts:
        if not isinstance(part, Hole):
            touches = touches and not len(part)
            continue
        if not touches or constraints[-1] != part.constraint:
            constraints.append(part.constraint)
        touches = True
    return constraints


def _checked_length(hole: Hole) -> int:
    """The length of a hole that is to be filled as it is; raises InvalidRequest."""
    if hole.is_automatic:
        raise InvalidRequest(
            "a hole of automatic length is filled by Engine.generate, which tries "
            f"several; here it must have a length, got {hole.length!r}",
            "prompt",
        )
    if isinstance(hole.length, bool) or not isinstance(hole.length, int):
        raise InvalidRequest(f"a hole's length must be an integer, got {hole.length!r}", "prompt")
    if not 1 <= hole.length <= MAX_POSITIONS:
        raise InvalidRequest(
            f"a hole's length must be in 1..{MAX_POSITIONS}, got {hole.length}", "prompt"
        )
    return hole.length
