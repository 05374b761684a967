"""Someone who looks on: told of every frame that leaves an engine's worker. Torch-free."""

from __future__ import annotations

from typing import Protocol

from diffusiongpt.engine.frame import Frame


class Observer(Protocol):
    """Counts and measures; changes nothing."""

    def note_frame(self, frame: Frame, seconds: float) -> None:
        """A frame is on its way, `seconds` after its request was submitted.

        Called in the engine's thread for every frame of every request, the last one, with its
        finish reason, included; must return at once and raise nothing.
        """
        ...
