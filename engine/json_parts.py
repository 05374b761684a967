"""The parts of an automaton that spell JSON: punctuation and constants, and the numbers and strings
of which a schema says something. Torch-free."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from diffusiongpt.engine.automaton import Automaton, NotRegular, Parts, combine, determine
from diffusiongpt.engine.json_strings import Fragment, format_of, length_of, pattern_of
from diffusiongpt.engine.json_values import (
    Bounds,
    add_integer,
    add_multiples,
    add_number,
    as_decimal,
    spell,
)

_LOOKS_OF_AN_AUTOMATON = 5000  # at parts, that it takes


class JsonParts(Parts):
    """Parts to which texts of JSON are added."""

    __slots__ = ()

    def after(self, text: bytes, start: int) -> int:
        """The part after a text."""
        end = self.new()
        self.add_text(text, start, end)
        return end

    def after_comma(self, start: int) -> int:
        """After a comma, and a space or none."""
        return self.after_space(self.after(b",", start))

    def after_key(self, key: str, start: int) -> int:
        """After a key with its colon, and a space or none."""
        return self.after_space(self.after(f"{spell(key)}:".encode(), start))

    def after_space(self, start: int) -> int:
        """After a space or none."""
        end = self.after(b" ", start)
        self.silent[start].append(end)
        return end

    def add_value(self, value: Any, start: int, end: int) -> None:
        """A constant, with a space or none after each comma and colon."""
        if isinstance(value, list):
            start = self.after(b"[", start)
            for index, each in enumerate(value):
                start = self.after_comma(start) if index else start
                start, before = self.new(), start
                self.add_value(each, before, start)
            self.add_text(b"]", start, end)
        elif isinstance(value, dict):
            start = self.after(b"{", start)
            for index, (key, each) in enumerate(value.items()):
                start = self.after_comma(start) if index else start
                start, before = self.new(), self.after_key(key, start)
                self.add_value(each, before, start)
            self.add_text(b"}", start, end)
        else:
            self.add_text(spell(value).encode(), start, end)

    def add_number(
        self, words: Mapping[str, Any], start: int, end: int, *, is_integer: bool
    ) -> None:
        """The numbers that the words of a schema allow; raises NotRegular, TooLarge."""
        bounds = _bounds_of(words)
        modulus = words.get("multipleOf")
        if modulus is None:
            add = add_integer if is_integer else add_number
            add(self, bounds, start, end)
            return
        if as_decimal(modulus) != int(modulus) or modulus < 1:
            raise NotRegular("multipleOf is no integer")
        multiples = self.automaton_of(lambda parts, a, b: add_multiples(parts, int(modulus), a, b))
        within = self.automaton_of(lambda parts, a, b: add_integer(parts, bounds, a, b))
        both = combine(multiples, within, operator.and_, self.effort)
        self.add_automaton(both, start, end)

    def add_string(self, words: Mapping[str, Any], start: int, end: int) -> None:
        """The strings that the words of a schema allow; raises NotRegular, TooLarge."""
        within, quote = self.after(b'"', start), self.new()
        self.add_text(b'"', quote, end)
        asked: list[Fragment] = []
        if "pattern" in words:
            asked.append(pattern_of(words["pattern"]))
        if "format" in words:
            asked.append(format_of(words["format"]))
        if words.get("minLength", 0) or "maxLength" in words or not asked:
            asked.append(length_of(words.get("minLength", 0), words.get("maxLength")))
        self._add_all(asked, within, quote)

    def _add_all(self, asked: Sequence[Fragment], start: int, end: int) -> None:
        """What is in all of some languages."""
        if len(asked) == 1:
            asked[0](self, start, end)
            return
        both = self.automaton_of(asked[0])
        for each in asked[1:]:
            both = combine(both, self.automaton_of(each), operator.and_, self.effort)
        self.add_automaton(both, start, end)

    def automaton_of(self, add: Fragment) -> Automaton:
        """A language made deterministic among parts of its own, whose effort counts here."""
        parts = Parts(effort=self.effort)
        parts.effort.spend(_LOOKS_OF_AN_AUTOMATON)
        start, end = parts.new(), parts.new()
        add(parts, start, end)
        return determine(parts, start, end)


def _bounds_of(words: Mapping[str, Any]) -> Bounds:
    """The bounds of a number; of two on one side the narrower one."""
    least, most = (
        [
            (as_decimal(words[word]), word.startswith("exclusive"))
            for word in (f"{side}imum", f"exclusive{side.capitalize()}imum")
            if word in words
        ]
        for side in ("min", "max")
    )
    low, is_open_below = max(least, default=(None, False))
    high, is_shut_above = min(
        ((bound, not is_open) for bound, is_open in most), default=(None, True)
    )
    return Bounds(low, high, is_open_below, not is_shut_above)
