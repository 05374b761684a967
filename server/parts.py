"""What an answer's text is made of: content, thinking, calls of tools.

A splitter reads settled text as it comes and says what its parts are. It is incremental: any
chunking of a text gives the same parts, nothing is lost and nothing comes twice. What may turn
out to be the beginning of a mark waits, as a possible stop string does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool begins; `index` counts the answer's calls."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, which are the text of a JSON object."""

    index: int
    fragment: str


Part = Content | Reasoning | CallBegin | CallArguments


class Splitter(Protocol):
    """Reads a text piece by piece."""

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain by now."""
        ...

    def finish(self) -> list[Part]:
        """The rest; no text comes any more."""
        ...


class AllContent:
    """The splitter of a text that is content and nothing else."""

    def feed(self, text: str) -> list[Part]:
        """The text as it is."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """Nothing waits."""
        return []


class Chain:
    """One splitter after another: what is content to the first one goes through the second."""

    def __init__(self, first: Splitter, second: Splitter) -> None:
        self._first = first
        self._second = second

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain by now."""
        return self._pass_on(self._first.feed(text))

    def finish(self) -> list[Part]:
        """The rest."""
        return self._pass_on(self._first.finish()) + self._second.finish()

    def _pass_on(self, parts: Iterable[Part]) -> list[Part]:
        passed: list[Part] = []
        for part in parts:
            passed += self._second.feed(part.text) if isinstance(part, Content) else [part]
        return passed


@dataclass(slots=True)
class Call:
    """A complete call."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Collected:
    """An answer's parts put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, parts: Iterable[Part]) -> None:
        """Take over what a splitter gave."""
        for part in parts:
            match part:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case CallBegin(_, id, name):
                    self.calls.append(Call(id, name))
                case CallArguments(index, fragment):
                    self.calls[index].arguments += fragment


def num_certain(text: str, mark: str) -> int:
    """Leading characters of a text without `mark` that belong to no beginning of one.

    White space before a possible mark waits with it, because a mark takes it away.
    """
    longest = min(len(text), len(mark) - 1)
    held = next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
    return len(text[: len(text) - held].rstrip())
