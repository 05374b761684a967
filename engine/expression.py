"""From a regular expression to a deterministic automaton over bytes. Torch-free.

The standard library's parser reads the expression. What it reads otherwise than Rust's syntax, in
which a request writes it, is left out, and so is what is not regular: such expressions have no
automaton here. A character that the two disagree about (a few of `\\w` and `\\s`) is never
written, neither for the class nor for its complement.

The patterns of JSON schemas are JavaScript's: what that reads otherwise is left out, too, and its
classes are the narrower ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from diffusiongpt.engine.automaton import Assembled, NotRegular, Parts, TooLarge
from diffusiongpt.engine.characters import Ranges, categories, complement, intersection, union

# Where a set holds a set, or an operation on sets, Python reads its characters.
_PLAIN_SETS = re.compile(r"(?:\\.|[^\\\[]|\[\^?\]?(?:\\.|[^\]\\\[])*\])*", re.DOTALL)
_SET_OPERATIONS = re.compile(r"&&|--|~~")
# Escapes that JavaScript reads otherwise, and repeats that it does not read as such.
_ESCAPES = re.compile(r"\\.|\{,", re.DOTALL)
_NOT_JAVASCRIPT = {r"\a", r"\A", r"\N", r"\U", r"\Z", "{,"}
_MAX_CHARACTERS = 65_536  # reading more takes a tenth of a second and up
_EVERYTHING: Ranges = ((0, 0x10FFFF),)
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_ASCII: Ranges = ((0x00, 0x7F),)


def parts_of_regex(source: str) -> Assembled:
    """The parts of a whole text; raises NotRegular or TooLarge."""
    parts = Parts()
    start, end = parts.new(), parts.new()
    try:
        Expression(parts).add_sequence(parse(source), start, end)
    except RecursionError as error:
        raise TooLarge from error
    return Assembled(parts, start, end)


def parts_of_choices(choices: Sequence[str]) -> Assembled:
    """The parts of a few texts; raises TooLarge."""
    parts = Parts()
    start, end = parts.new(), parts.new()
    for each in choices:
        parts.add_text(each.encode(), start, end)
    return Assembled(parts, start, end)


def parse(source: str) -> Any:
    """The tree of an expression; raises NotRegular or TooLarge."""
    if len(source) > _MAX_CHARACTERS:
        raise TooLarge
    if not _PLAIN_SETS.fullmatch(source) or _SET_OPERATIONS.search(source):
        raise NotRegular
    try:
        tree = _parser.parse(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise NotRegular from error
    if tree.state.flags != re.UNICODE:
        raise NotRegular
    return tree


class Expression:
    """Adds the trees of expressions to parts.

    Args:
        in_json: it is a pattern of a JSON schema, and characters are spelled as JSON strings do.
    """

    def __init__(self, parts: Parts, *, in_json: bool = False) -> None:
        self._parts = parts
        self._in_json = in_json
        # Of sets that were read, by their place in the tree: repeats come by again.
        self._sets: dict[int, tuple[Ranges, Ranges]] = {}

    def add_sequence(self, tree: Any, start: int, end: int) -> None:
        """What matches a tree as a whole."""
        for kind, value in tree:
            start, before = self._parts.new(), start
            self._add(kind, value, before, start)
        self._parts.silent[start].append(end)

    def add_search(self, pattern: str, start: int, end: int) -> None:
        """Every text in which a pattern is found; it is anchored at its ends or not at all."""
        if _NOT_JAVASCRIPT.intersection(_ESCAPES.findall(pattern)):
            raise NotRegular
        self._add_search(list(parse(pattern)), start, end)

    def _add_search(self, items: list[Any], start: int, end: int) -> None:
        if items and items[-1][0] is _constants.BRANCH:
            # What alternatives have in common stands before them: each may be anchored.
            for each in items[-1][1][1]:
                self._add_search([*items[:-1], *each], start, end)
            return
        first, last = (_constants.AT, _constants.AT_BEGINNING), (_constants.AT, _constants.AT_END)
        is_begun, is_ended = first in items[:1], last in items[-1:]
        if not is_begun:
            start, before = self._parts.new(), start
            self.add_any(before, start)
        inner = self._parts.new()
        self.add_sequence(items[is_begun : len(items) - is_ended], start, inner)
        if is_ended:
            self._parts.silent[inner].append(end)
        else:
            self.add_any(inner, end)

    def add_any(self, start: int, end: int) -> None:
        """Any characters, and any number of them."""
        again = self._parts.new()
        self._parts.silent[start].append(again)
        self.add_characters(_EVERYTHING, again, again)
        self._parts.silent[again].append(end)

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
            self.add_characters(self._characters(kind, value)[0], start, end)

    def _add_repeat(self, least: int, most: Any, inner: Any, start: int, end: int) -> None:
        parts = self._parts
        for _ in range(least):
            start, before = parts.new(), start
            self.add_sequence(inner, before, start)
        if most is _constants.MAXREPEAT:
            again = parts.new()
            parts.silent[start].append(again)
            self.add_sequence(inner, again, again)
            parts.silent[again].append(end)
            return
        for _ in range(most - least):
            parts.silent[start].append(end)
            start, before = parts.new(), start
            self.add_sequence(inner, before, start)
        parts.silent[start].append(end)

    def add_characters(self, characters: Ranges, start: int, end: int) -> None:
        """One of some characters."""
        if self._in_json:
            self._parts.add_characters_of_json(characters, start, end)
        else:
            self._parts.add_characters(characters, start, end)

    def _characters(self, kind: Any, value: Any) -> tuple[Ranges, Ranges]:
        """The characters that are surely meant, and those that surely are not."""
        if kind is _constants.LITERAL:
            return _both(((value, value),))
        if kind is _constants.NOT_LITERAL:
            return _both(((value, value),))[::-1]
        if kind is _constants.RANGE:
            return _both((value,))
        if kind is _constants.ANY:
            return _both(_LINE_ENDS if self._in_json else _LINE_ENDS[:1])[::-1]
        if kind is _constants.CATEGORY:
            return self._category(str(value).removeprefix("CATEGORY_").lower())
        if kind is not _constants.IN:
            raise NotRegular
        if id(value) not in self._sets:
            self._sets[id(value)] = self._set(value)
        return self._sets[id(value)]

    def _set(self, items: Sequence[tuple[Any, Any]]) -> tuple[Ranges, Ranges]:
        """What `[...]` means."""
        negated = items[0][0] is _constants.NEGATE
        surely: list[tuple[int, int]] = []
        maybe: list[tuple[int, int]] = []
        for kind, value in items[negated:]:
            if kind in (_constants.LITERAL, _constants.RANGE):
                plain = value if kind is _constants.RANGE else (value, value)
                surely.append(plain)
                maybe.append(plain)
            else:
                inside, outside = self._characters(kind, value)
                surely += inside
                maybe += complement(outside)
        outside = complement(union(maybe))
        return (outside, union(surely)) if negated else (union(surely), outside)

    def _category(self, name: str) -> tuple[Ranges, Ranges]:
        """A class such as `\\d`, or its complement."""
        is_complement = name.startswith("not_")
        pair = categories().get(name.removeprefix("not_"))
        if pair is None:
            raise NotRegular
        if self._in_json:
            # JavaScript's digits and words are ASCII, and U+FEFF is a space to it alone.
            pair = intersection(pair[0], _ASCII), intersection(pair[1], _both(((0xFEFF,) * 2,))[1])
        return pair[::-1] if is_complement else pair


def _both(ranges: Ranges) -> tuple[Ranges, Ranges]:
    return ranges, complement(ranges)
