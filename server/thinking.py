"""Splits a model's thinking from its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffusiongpt.engine.chat import Thinking
from diffusiongpt.server.parts import Content, Part, Reasoning, num_certain


class ThinkingSplitter:
    """Reads `<think>...</think>` at the beginning of a text as reasoning, the rest as content.

    White space around the marks belongs to nobody. Later marks are content, as is a text that
    does not begin with one; thinking that never ends is reasoning up to the end of the text.

    Args:
        thinking: the marks.
        is_open: the prompt has opened the thinking already.
    """

    def __init__(self, thinking: Thinking, *, is_open: bool) -> None:
        self._opening = thinking.opening
        self._closing = thinking.closing
        self._is_open = is_open
        self._step: Callable[[bool], list[Part]] = self._before
        self._held = ""
        self._num_read = 0
        self._has_thought = False
        self._end: int | None = None

    @property
    def num_thought(self) -> int:
        """Characters of the text so far up to the end of the thinking, its marks included."""
        if self._end is not None:
            return self._end
        return self._num_read if self._step == self._inside else 0

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain by now."""
        self._held += text
        self._num_read += len(text)
        return self._step(False)

    def finish(self) -> list[Part]:
        """The rest."""
        return self._step(True)

    def _before(self, is_last: bool) -> list[Part]:
        """Is there a mark at the beginning?"""
        begun = self._held.lstrip()
        if begun.startswith(self._opening):
            self._held = begun[len(self._opening) :]
            self._step = self._inside
        elif self._opening.startswith(begun) and not is_last:
            return []
        else:
            self._step = self._inside if self._is_open else self._after
        return self._step(is_last)

    def _inside(self, is_last: bool) -> list[Part]:
        if not self._has_thought:
            self._held = self._held.lstrip()
        thought, found, rest = self._held.partition(self._closing)
        if found:
            self._end = self._num_read - len(rest)
            self._held, self._step = rest, self._behind
            thought = thought.rstrip()
            return [*_reasoning(thought), *self._step(is_last)]
        length = len(self._held) if is_last else num_certain(self._held, self._closing)
        thought, self._held = self._held[:length], self._held[length:]
        self._has_thought |= bool(thought)
        return _reasoning(thought)

    def _behind(self, is_last: bool) -> list[Part]:
        """White space after the closing mark goes with it."""
        self._held = self._held.lstrip()
        if self._held:
            self._step = self._after
        return self._after(is_last)

    def _after(self, _is_last: bool) -> list[Part]:
        text, self._held = self._held, ""
        return [Content(text)] if text else []


def _reasoning(text: str) -> list[Part]:
    return [Reasoning(text)] if text else []


def count_tokens(
    tokens: Mapping[int, int], decode: Callable[[list[int]], str], num_characters: int
) -> int:
    """Tokens whose text makes up the first characters of an answer.

    Args:
        tokens: the answer's token ids by position. decode: their text.
    """
    if not num_characters:
        return 0
    ids = [tokens[position] for position in sorted(tokens)]
    low, high = 0, len(ids)
    while low < high:  # a longer beginning never has a shorter text
        middle = (low + high) // 2
        if len(decode(ids[:middle])) < num_characters:
            low = middle + 1
        else:
            high = middle
    return low
