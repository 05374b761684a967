"""Someone who looks on: told of every frame that leaves an engine's worker, and of every
constraint that it gets ready. Torch-free."""

from __future__ import annotations

from typing import Literal, Protocol

from diffusiongpt.engine.constraint import ConstraintKind
from diffusiongpt.engine.frame import Frame

CompiledOrder = Literal["any", "left_to_right"]


class Observer(Protocol):
    """Counts and measures; changes nothing."""

    def note_frame(self, frame: Frame, seconds: float) -> None:
        """A frame is on its way, `seconds` after its request was submitted.

        Called in the engine's thread for every frame of every request, the last one, with its
        finish reason, included; must return at once and raise nothing.
        """
        ...

    def note_compile(
        self, kind: ConstraintKind, seconds: float, order: CompiledOrder | None
    ) -> None:
        """A constraint was got ready in so many seconds, next to none if it was known, for texts
        that are written in this order; None was refused.

        Called in whichever thread asked for it; must return at once and raise nothing.
        """
        ...
