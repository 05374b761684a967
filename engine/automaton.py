"""Automata over bytes: put together of parts, made deterministic, combined. Torch-free.

All that makes automata costs effort, which is counted and not timed: so the same language is too
large on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diffusiongpt.engine.characters import Ranges, encoded, intersection

MAX_STATES = 2048
_MAX_PARTS = 20_000  # of an automaton that is not yet deterministic
_MAX_EFFORT = 1_200_000  # looks at parts and at pairs of states: about a third of a second
_LOOKS_OF_A_PAIR = 100  # a pair of states takes as long as so many looks
# What a JSON string holds as it is, and the letters of what it does not.
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0x10FFFF))
_ESCAPED = {0x08: "b", 0x09: "t", 0x0A: "n", 0x0C: "f", 0x0D: "r", 0x22: '"', 0x5C: "\\"}


class TooLarge(Exception):
    """An automaton would have too many states, or take too long to make."""


class NotRegular(Exception):
    """There is no automaton of a language, or none that is surely right; the message says why, as
    the rest of a sentence, where there is something to say."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """Deterministic, over bytes. State 0 is the one without a way out, state 1 the first.

    Attributes:
        table: (S, 256) the state after a byte.
        accepting: (S,) whether the text may end.
    """

    table: NDArray[np.int32]
    accepting: NDArray[np.bool_]

    def accepts(self, text: bytes) -> bool:
        """Whether a text may end after its last byte."""
        state = 1
        for byte in text:
            state = int(self.table[state, byte])
        return bool(self.accepting[state])


@dataclass(slots=True)
class Effort:
    """What making one automaton has cost so far."""

    spent: int = 0

    def spend(self, looks: int) -> None:
        """Count some looks; raises TooLarge where they have become too many."""
        self.spent += looks
        if self.spent > _MAX_EFFORT:
            raise TooLarge


@dataclass(slots=True)
class Parts:
    """Thompson's automaton: `silent` moves of every part, and `moves` (first byte, last, to)."""

    effort: Effort = field(default_factory=Effort)
    silent: list[list[int]] = field(default_factory=list)
    moves: list[list[tuple[int, int, int]]] = field(default_factory=list)

    def new(self) -> int:
        """A part more; raises TooLarge."""
        if len(self.moves) >= _MAX_PARTS:
            raise TooLarge
        self.silent.append([])
        self.moves.append([])
        return len(self.moves) - 1

    def add_text(self, data: bytes, start: int, end: int) -> None:
        """A text from one part to another."""
        for byte in data:
            start, before = self.new(), start
            self.moves[before].append((byte, byte, start))
        self.silent[start].append(end)

    def add_characters(self, characters: Ranges, start: int, end: int) -> None:
        """Any one of some characters, in UTF-8."""
        rests: dict[tuple[tuple[int, int], ...], int] = {(): end}
        all_spelled = encoded(characters)
        self.effort.spend(len(all_spelled))
        for spelled in all_spelled:
            at = start
            for index, (first, last) in enumerate(spelled):
                rest = spelled[index + 1 :]
                is_new = rest not in rests
                if is_new:
                    rests[rest] = self.new()
                self.moves[at].append((first, last, rests[rest]))
                if not is_new:
                    break
                at = rests[rest]

    def add_characters_of_json(self, characters: Ranges, start: int, end: int) -> None:
        """Any one of some characters, as a JSON string spells it, in one way each.

        Control characters without a letter of their own are not written.
        """
        plain, escaped = _in_json(characters)
        self.add_characters(plain, start, end)
        if escaped:
            backslash = self.new()
            self.moves[start].append((0x5C, 0x5C, backslash))
            self.moves[backslash] += [(ord(each), ord(each), end) for each in escaped]

    def add_automaton(self, automaton: Automaton, start: int, end: int) -> None:
        """What an automaton accepts."""
        own = [self.new() for _ in automaton.accepting]
        self.silent[start].append(own[1])
        for state, row in enumerate(automaton.table):
            edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), 256]
            self.moves[own[state]] += [
                (first, last - 1, own[row[first]]) for first, last in pairwise(edges) if row[first]
            ]
            if automaton.accepting[state]:
                self.silent[own[state]].append(end)

    def closure(self, states: set[int]) -> frozenset[int]:
        """The parts and what is silently reached from them."""
        reached, line = set(states), list(states)
        while line:
            for each in self.silent[line.pop()]:
                if each not in reached:
                    reached.add(each)
                    line.append(each)
        return frozenset(reached)


@lru_cache(maxsize=64)
def _in_json(characters: Ranges) -> tuple[Ranges, str]:
    """Of some characters those that a JSON string holds as they are, and the letters of others."""
    letters = (
        letter
        for code, letter in _ESCAPED.items()
        if any(first <= code <= last for first, last in characters)
    )
    return intersection(characters, _PLAIN), "".join(letters)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A language as parts: its texts lead from the part `start` to the part `end`."""

    parts: Parts
    start: int
    end: int

    def determine(self) -> Automaton:
        """The same as a deterministic automaton; raises TooLarge."""
        return determine(self.parts, self.start, self.end)


def determine(parts: Parts, start: int, end: int) -> Automaton:
    """The subsets of parts that are reached together; raises TooLarge."""
    subsets = [frozenset[int](), parts.closure({start})]
    number = {subset: index for index, subset in enumerate(subsets)}
    rows = [[0] * 256]
    while len(rows) < len(subsets):
        row = [0] * 256
        for first, last, targets, looks in _moves_of(parts, subsets[len(rows)]):
            subset = parts.closure(targets)
            parts.effort.spend(looks + len(subset))
            if subset not in number:
                number[subset] = len(subsets)
                subsets.append(subset)
            row[first : last + 1] = [number[subset]] * (last + 1 - first)
        if len(subsets) > MAX_STATES:
            raise TooLarge
        rows.append(row)
    accepting = np.array([end in subset for subset in subsets])
    return _trim(np.array(rows, dtype=np.int32), accepting)


def _moves_of(parts: Parts, subset: frozenset[int]) -> Iterator[tuple[int, int, set[int], int]]:
    """The bytes first..last that lead from a subset to the same parts, those, and how many moves
    were looked at for it."""
    moves = {move for each in subset for move in parts.moves[each]}
    edges = sorted({edge for first, last, _ in moves for edge in (first, last + 1)})
    for low, high in pairwise(edges):
        targets = {to for first, last, to in moves if first <= low <= last}
        if targets:
            yield low, high - 1, targets, len(moves)


def combine(
    one: Automaton, other: Automaton, keeps: Callable[[bool, bool], bool], effort: Effort
) -> Automaton:
    """The texts that two automata accept as `keeps` says: `operator.and_` is what both accept.

    Args:
        keeps: of whether the first one accepts, and the second; not both may be no.

    Raises:
        TooLarge: too many pairs of states are reached.
    """
    pairs = [(0, 0), (1, 1)]
    number = {pair: index for index, pair in enumerate(pairs)}
    rows = [np.zeros(256, dtype=np.int32)]
    size = len(other.table)
    while len(rows) < len(pairs):
        effort.spend(_LOOKS_OF_A_PAIR)
        first, second = pairs[len(rows)]
        codes = one.table[first] * size + other.table[second]
        reached, index = np.unique(codes, return_inverse=True)
        numbers = [number.setdefault(pair, len(number)) for pair in _pairs(reached, size)]
        pairs = list(number)
        if len(pairs) > MAX_STATES:
            raise TooLarge
        rows.append(np.array(numbers, dtype=np.int32)[index])
    accepting = [keeps(bool(one.accepting[a]), bool(other.accepting[b])) for a, b in pairs]
    return _trim(np.stack(rows), np.array(accepting))


def _pairs(codes: NDArray[np.signedinteger], size: int) -> Sequence[tuple[int, int]]:
    return [divmod(code, size) for code in codes.tolist()]


def _trim(table: NDArray[np.int32], accepting: NDArray[np.bool_]) -> Automaton:
    """An automaton without the states from which no text ends; those are state 0 from now on."""
    num_states = len(table)
    changes = np.diff(table, axis=1, prepend=-1) != 0
    pairs = np.unique(np.nonzero(changes)[0] * num_states + table[changes])
    sources: list[list[int]] = [[] for _ in range(num_states)]
    for source, target in _pairs(pairs, num_states):
        sources[target].append(source)
    line = np.flatnonzero(accepting).tolist()
    lives = set(line)
    while line:
        for each in sources[line.pop()]:
            if each not in lives:
                lives.add(each)
                line.append(each)
    kept = sorted({0, 1} | lives)
    number = np.zeros(num_states, dtype=np.int32)
    number[sorted(lives)] = np.searchsorted(kept, sorted(lives))
    return Automaton(number[table[kept]], accepting[kept])
