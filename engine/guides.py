"""What keeps a completion within its language, as the rest of the engine sees it. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from diffusiongpt.engine.anyorder import AnyOrderGuide, Stretch
from diffusiongpt.engine.canvas import Canvas
from diffusiongpt.engine.guide import Guide as LeftToRightGuide
from diffusiongpt.engine.languages import Language


class Guide(Protocol):
    """Keeps one completion within its language; positions count from the completion's start.

    Attributes:
        is_in_order: whether commits must be an unbroken run from the one open position.
        is_complete: whether the text is whole and nothing may follow.
        seconds: what finding and checking tokens took so far.
    """

    @property
    def is_in_order(self) -> bool: ...
    @property
    def is_complete(self) -> bool: ...
    @property
    def seconds(self) -> float: ...

    def open_sets(self, start: int, stop: int) -> dict[int, int]:
        """Of each open position among start..stop the tokens that may be committed there, as a
        set, at least one each."""
        ...

    def accept_at(
        self, positions: Sequence[int], tokens: Sequence[int], sureness: Sequence[float]
    ) -> list[bool]:
        """Take over tokens drawn at positions, from left to right; which are committed.

        Args:
            sureness: of the model at each position, before it drew.
        """
        ...

    def held_sets(self, start: int, stop: int) -> dict[int, int]:
        """Of each filled position among start..stop whose token must be kept within a language
        the tokens that could stand there, its own among them."""
        ...

    def release(self, positions: Sequence[int]) -> None:
        """Put the mask back on filled positions."""
        ...

    def take_forced_in(self, start: int, stop: int, most: int) -> list[tuple[int, int]]:
        """Commit what has no alternative among start..stop, `most` of it: (position, token)."""
        ...

    def is_past_end(self, position: int) -> bool:
        """Whether a position lies after the end of the text, and has none."""
        ...


def new_guide(languages: Sequence[Language | None], canvas: Canvas) -> Guide | None:
    """A guide of a canvas, whose holes have these languages or None; None if nobody has one.

    It goes in any order where the languages have automata.
    """
    if not any(languages):
        return None
    guided = [(each, hole) for each, hole in zip(languages, canvas.holes, strict=True) if each]
    stretches = []
    for language, hole in guided:
        if language.automaton is None:
            return LeftToRightGuide(language, len(canvas.region))
        stretches.append(Stretch(language.automaton, *hole))
    free = canvas.num_masked - sum(stop - start for _, (start, stop) in guided)
    return AnyOrderGuide(stretches, num_free=free)
