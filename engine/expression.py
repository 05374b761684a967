"""From a regular expression to a deterministic automaton over bytes. Torch-free.

The standard library's parser reads the expression. What it reads otherwise than Rust's syntax, in
which a request writes it, is left out, and so is what is not regular: such expressions have no
automaton here. A character that the two disagree about (a few of `\\w` and `\\s`) is never
written, neither for the class nor for its complement.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_STATES = 2048
_MAX_PARTS = 20_000  # of the automaton that is not yet deterministic
_MAX_LOOKS = 2_000_000  # at parts, while it is made deterministic: about half a second
_SURROGATES, _END = 0xD800, 0x110000
# Where a set holds a set, or an operation on sets, Python reads its characters.
_PLAIN_SETS = re.compile(r"(?:\\.|[^\\\[]|\[\^?\]?(?:\\.|[^\]\\\[])*\])*", re.DOTALL)
_SET_OPERATIONS = re.compile(r"&&|--|~~")
# Circled and squared letters: symbols, and alphabetic all the same.
_LETTERLIKE_SIGNS = ((0x24B6, 0x24E9), (0x1F130, 0x1F189))
# Where the characters of one encoded length begin.
_LENGTHS = (0, 0x80, 0x800, 0x10000, _END)

Ranges = tuple[tuple[int, int], ...]  # of code points, first and last, in order and apart


class TooLarge(Exception):
    """An automaton would have too many states."""


class NotRegular(Exception):
    """An expression is none that both syntaxes read alike and an automaton can hold."""


@dataclass(frozen=True, slots=True)
class Automaton:
    """Deterministic, over bytes. State 0 is the one without a way out, state 1 the first.

    Attributes:
        table: (S, 256) the state after a byte.
        accepting: (S,) whether the text may end.
    """

    table: NDArray[np.int32]
    accepting: NDArray[np.bool_]


def automaton_of_regex(source: str) -> Automaton:
    """The automaton of a whole text; raises NotRegular or TooLarge."""
    if not _PLAIN_SETS.fullmatch(source) or _SET_OPERATIONS.search(source):
        raise NotRegular
    try:
        tree = _parser.parse(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise NotRegular from error
    if tree.state.flags != re.UNICODE:
        raise NotRegular
    parts = _Parts()
    start, end = parts.new(), parts.new()
    try:
        parts.add_sequence(tree, start, end)
    except RecursionError as error:
        raise TooLarge from error
    return _determine(parts, start, end)


def automaton_of_choices(choices: Sequence[str]) -> Automaton:
    """The automaton of a few texts; raises TooLarge."""
    parts = _Parts()
    start, end = parts.new(), parts.new()
    for each in choices:
        parts.add_text(each.encode(), start, end)
    return _determine(parts, start, end)


@dataclass(slots=True)
class _Parts:
    """Thompson's automaton: `silent` moves of every part, and `moves` (first byte, last, to)."""

    silent: list[list[int]] = field(default_factory=list)
    moves: list[list[tuple[int, int, int]]] = field(default_factory=list)

    def new(self) -> int:
        if len(self.moves) >= _MAX_PARTS:
            raise TooLarge
        self.silent.append([])
        self.moves.append([])
        return len(self.moves) - 1

    def add_text(self, data: bytes, start: int, end: int) -> None:
        for byte in data:
            start, before = self.new(), start
            self.moves[before].append((byte, byte, start))
        self.silent[start].append(end)

    def add_sequence(self, tree: Any, start: int, end: int) -> None:
        for kind, value in tree:
            start, before = self.new(), start
            self._add(kind, value, before, start)
        self.silent[start].append(end)

    def _add(self, kind: Any, value: Any, start: int, end: int) -> None:
        if kind is _constants.BRANCH:
            for each in value[1]:
                self.add_sequence(each, start, end)
        elif kind is _constants.SUBPATTERN:
            _, added, removed, inner = value
            if added or removed:
                raise NotRegular
            self.add_sequence(inner, start, end)
        elif kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
            least, most, inner = value
            self._add_repeat(least, most, inner, start, end)
        else:
            self._add_characters(_characters(kind, value)[0], start, end)

    def _add_repeat(self, least: int, most: Any, inner: Any, start: int, end: int) -> None:
        for _ in range(least):
            start, before = self.new(), start
            self.add_sequence(inner, before, start)
        if most is _constants.MAXREPEAT:
            again = self.new()
            self.silent[start].append(again)
            self.add_sequence(inner, again, again)
            self.silent[again].append(end)
            return
        for _ in range(most - least):
            self.silent[start].append(end)
            start, before = self.new(), start
            self.add_sequence(inner, before, start)
        self.silent[start].append(end)

    def _add_characters(self, characters: Ranges, start: int, end: int) -> None:
        rests: dict[tuple[tuple[int, int], ...], int] = {(): end}
        for encoded in _encoded(characters):
            at = start
            for index, (first, last) in enumerate(encoded):
                rest = encoded[index + 1 :]
                is_new = rest not in rests
                if is_new:
                    rests[rest] = self.new()
                self.moves[at].append((first, last, rests[rest]))
                if not is_new:
                    break
                at = rests[rest]

    def closure(self, states: set[int]) -> frozenset[int]:
        """The states and what is silently reached from them."""
        reached, line = set(states), list(states)
        while line:
            for each in self.silent[line.pop()]:
                if each not in reached:
                    reached.add(each)
                    line.append(each)
        return frozenset(reached)


def _determine(parts: _Parts, start: int, end: int) -> Automaton:
    """The subsets of parts that are reached together."""
    subsets = [frozenset[int](), parts.closure({start})]
    number = {subset: index for index, subset in enumerate(subsets)}
    rows, num_looks = [[0] * 256], 0
    while len(rows) < len(subsets):
        row = [0] * 256
        for first, last, targets, looks in _moves_of(parts, subsets[len(rows)]):
            subset = parts.closure(targets)
            num_looks += looks + len(subset)
            if num_looks > _MAX_LOOKS:
                raise TooLarge
            if subset not in number:
                number[subset] = len(subsets)
                subsets.append(subset)
            row[first : last + 1] = [number[subset]] * (last + 1 - first)
        if len(subsets) > MAX_STATES:
            raise TooLarge
        rows.append(row)
    accepting = np.array([end in subset for subset in subsets])
    return Automaton(np.array(rows, dtype=np.int32), accepting)


def _moves_of(parts: _Parts, subset: frozenset[int]) -> Iterator[tuple[int, int, set[int], int]]:
    """The bytes first..last that lead from a subset to the same parts, those, and how many moves
    were looked at for it."""
    moves = {move for each in subset for move in parts.moves[each]}
    edges = sorted({edge for first, last, _ in moves for edge in (first, last + 1)})
    for low, high in pairwise(edges):
        targets = {to for first, last, to in moves if first <= low <= last}
        if targets:
            yield low, high - 1, targets, len(moves)


def _characters(kind: Any, value: Any) -> tuple[Ranges, Ranges]:
    """The characters that are surely meant, and those that surely are not."""
    if kind is _constants.LITERAL:
        return _both(((value, value),))
    if kind is _constants.NOT_LITERAL:
        return _both(((value, value),))[::-1]
    if kind is _constants.RANGE:
        return _both((value,))
    if kind is _constants.ANY:
        return _both(((10, 10),))[::-1]
    if kind is _constants.CATEGORY:
        return _category(str(value).removeprefix("CATEGORY_").lower())
    if kind is not _constants.IN:
        raise NotRegular
    negated = value[0][0] is _constants.NEGATE
    pairs = [_characters(*each) for each in value[negated:]]
    inside = _union([each for ranges, _ in pairs for each in ranges])
    maybe = _union([each for _, ranges in pairs for each in _complement(ranges)])
    return (_complement(maybe), inside) if negated else (inside, _complement(maybe))


def _both(ranges: Ranges) -> tuple[Ranges, Ranges]:
    return ranges, _complement(ranges)


def _category(name: str) -> tuple[Ranges, Ranges]:
    """A class such as `\\d`, or its complement."""
    is_complement = name.startswith("not_")
    pair = _categories().get(name.removeprefix("not_"))
    if pair is None:
        raise NotRegular
    return pair[::-1] if is_complement else pair


@lru_cache(maxsize=1)
def _categories() -> dict[str, tuple[Ranges, Ranges]]:
    """Of each class the characters inside, and those outside, as far as both syntaxes agree.

    A word in Python is of alphanumeric characters, in Rust (UTS 18) of alphabetic ones, marks,
    decimal digits and connectors; white space in Python includes the separators U+001C to U+001F.
    """
    codes = np.array([*range(_SURROGATES), *range(_SURROGATES + 0x800, _END)])
    texts = list(map(chr, codes.tolist()))
    kind = np.array(list(map(unicodedata.category, texts)))
    spaces = np.array(list(map(str.isspace, texts)))
    separators = (codes >= 0x1C) & (codes <= 0x1F)
    digits, unassigned = kind == "Nd", kind == "Cn"
    letters = np.char.startswith(kind, "L") | np.isin(kind, ("Nd", "Nl")) | (codes == ord("_"))
    # What either may take for part of a word: the rest is surely none.
    wordlike = letters | np.isin(kind, ("Mn", "Mc", "Me", "No", "Pc", "Cf", "Cn"))
    for first, last in _LETTERLIKE_SIGNS:
        wordlike |= (codes >= first) & (codes <= last)
    return {
        "digit": (_ranges(codes[digits]), _ranges(codes[~digits & ~unassigned])),
        "word": (_ranges(codes[letters]), _ranges(codes[~wordlike])),
        "space": (_ranges(codes[spaces & ~separators]), _ranges(codes[~spaces])),
    }


def _ranges(codes: NDArray[np.int64]) -> Ranges:
    """Codes in order, as ranges."""
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    return tuple((int(run[0]), int(run[-1])) for run in runs)


def _union(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Ranges in order, those that touch joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def _complement(ranges: Ranges) -> Ranges:
    edges = [(-1, -1), *_union(ranges), (_END, _END)]
    return tuple((a[1] + 1, b[0] - 1) for a, b in pairwise(edges) if a[1] + 1 < b[0])


def _encoded(ranges: Ranges) -> Iterator[tuple[tuple[int, int], ...]]:
    """The UTF-8 of ranges, as byte ranges that combine freely."""
    for whole in ranges:
        for low, high in (*pairwise(_LENGTHS[:4]), (0x10000, _END)):
            for first, last in ((low, _SURROGATES - 1), (_SURROGATES + 0x800, high - 1)):
                first, last = max(whole[0], first, low), min(whole[1], last, high - 1)
                if first <= last:
                    yield from _split(chr(first).encode(), chr(last).encode())


def _split(first: bytes, last: bytes) -> Iterator[tuple[tuple[int, int], ...]]:
    """Encoded characters of one length, from first to last."""
    if len(first) == 1 or first[0] == last[0]:
        if len(first) == 1:
            yield ((first[0], last[0]),)
            return
        yield from (((first[0], first[0]), *rest) for rest in _split(first[1:], last[1:]))
        return
    lowest, highest = b"\x80" * (len(first) - 1), b"\xbf" * (len(first) - 1)
    begin, end = first[0], last[0]
    if first[1:] != lowest:
        yield from (((begin, begin), *rest) for rest in _split(first[1:], highest))
        begin += 1
    if last[1:] != highest:
        yield from (((end, end), *rest) for rest in _split(lowest, last[1:]))
        end -= 1
    if begin <= end:
        yield ((begin, end), *((0x80, 0xBF),) * len(lowest))
