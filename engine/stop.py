"""Finds stop strings in a text that grows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from copy import copy


class StopSearch:
    """Finds the stop string whose occurrence starts earliest in a text that grows.

    An Aho-Corasick automaton: each character is looked at once, however many stop strings
    there are. Nothing is found while a stop string that starts earlier can still complete.

    Attributes:
        found: where the stop string starts, in characters, once that is certain; else None.
        num_safe: leading characters that no stop string can take away any more.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.found: int | None = None
        self.num_safe = 0
        self._num_characters = 0
        self._candidate: int | None = None
        self._state = 0
        self._children: list[dict[str, int]] = [{}]
        self._depth = [0]  # characters of a stop string that the state has seen
        self._matched = [0]  # length of the longest stop string that ends in the state
        self._fallback = [0]  # the state of the longest proper suffix
        for text in stop:
            self._add(text)
        self._link()

    def fresh(self) -> StopSearch:
        """Another search for the same strings, of one that has read nothing; they share the
        automaton, which takes a moment to build where there are many strings."""
        return copy(self)

    def feed(self, text: str) -> None:
        """Read on; does nothing once a stop string is found."""
        if not self._children[0]:
            self._num_characters = self.num_safe = self._num_characters + len(text)
            return
        for character in text:
            if self.found is not None:
                return
            self._step(character)

    def finish(self) -> None:
        """No more text comes, so what has not completed by now never will."""
        if self.found is None:
            self.found = self._candidate
            self.num_safe = self._num_characters if self.found is None else self.found

    def _add(self, text: str) -> None:
        state = 0
        for character in text:
            if character not in self._children[state]:
                self._children[state][character] = len(self._children)
                self._children.append({})
                self._depth.append(self._depth[state] + 1)
                self._matched.append(0)
                self._fallback.append(0)
            state = self._children[state][character]
        self._matched[state] = len(text)

    def _link(self) -> None:
        """Give every state its fallback, the short ones first."""
        queue = deque(self._children[0].values())
        while queue:
            state = queue.popleft()
            fallback = self._fallback[state]
            self._matched[state] = self._matched[state] or self._matched[fallback]
            for character, child in self._children[state].items():
                self._fallback[child] = self._next(fallback, character)
                queue.append(child)

    def _next(self, state: int, character: str) -> int:
        while state and character not in self._children[state]:
            state = self._fallback[state]
        return self._children[state].get(character, 0)

    def _step(self, character: str) -> None:
        self._state = self._next(self._state, character)
        self._num_characters += 1
        if matched := self._matched[self._state]:
            start = self._num_characters - matched
            if self._candidate is None or start < self._candidate:
                self._candidate = start
        alive = self._num_characters - self._depth[self._state]
        if self._candidate is not None and self._candidate <= alive:
            self.found = self.num_safe = self._candidate
        else:
            self.num_safe = alive
