"""Puts a completion's text together again from the changes that its frames carry."""

from __future__ import annotations

from collections.abc import Iterable

from diffusiongpt.engine.frame import Change


class Replay:
    """What a watcher knows of a completion: the text of every filled position.

    A position that is absent is masked; one that is present with "" is filled by a token that
    shows no text of its own (yet). Positions count from the completion's start.
    """

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}

    def apply(self, changes: Iterable[Change], unset: Iterable[int] = ()) -> str:
        """Take over a frame's `set`, then its `unset`, and return the text as it stands."""
        for change in changes:
            self.texts[change.position] = change.text
        for position in unset:
            self.texts.pop(position, None)
        return self.text

    @property
    def text(self) -> str:
        """All texts joined in the order of their positions, masked ones left out."""
        return "".join(self.texts[position] for position in sorted(self.texts))
