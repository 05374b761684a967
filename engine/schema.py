"""From a JSON schema to a deterministic automaton over bytes, if its texts are a regular language.
Torch-free.

The texts are nearly those that llguidance accepts of the schema, each valid under it: keys in the
schema's order, at most one space after a comma or a colon, every character of a string in one
spelling. A word that is not kept exactly makes the schema not regular; words that assert nothing
change nothing. What a schema means in ways that only llguidance checks (that the cases of `oneOf`
exclude each other, that a `format` is known) it has checked before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffusiongpt.engine.automaton import (
    Assembled,
    Automaton,
    NotRegular,
    Parts,
    TooLarge,
    combine,
    determine,
)
from diffusiongpt.engine.json_parts import JsonParts
from diffusiongpt.engine.json_strings import inside, length_of, pattern_of
from diffusiongpt.engine.schema_words import resolve, types_of, values_of, words_of

_LOOKS_OF_A_SCHEMA = 50  # at parts, that it takes


def parts_of_schema(source: str, adds: type[SchemaParts] | None = None) -> Assembled:
    """The parts of a schema's JSON text; raises NotRegular or TooLarge.

    Args:
        adds: what makes them, where it is not all texts of the schema that are wanted.
    """
    parts = JsonParts()
    start, end = parts.new(), parts.new()
    root = json.loads(source)
    try:
        (adds or SchemaParts)(root, parts).add(root, start, end)
    except RecursionError as error:
        raise TooLarge from error
    return Assembled(parts, start, end)


class SchemaParts:
    """Adds what schemas allow to the parts of an automaton.

    Args:
        root: the schema in which references are looked up.
    """

    def __init__(self, root: Any, parts: JsonParts) -> None:
        self._root, self._parts = root, parts
        self._open: list[str] = []  # references that are being followed

    def add(self, schema: Any, start: int, end: int) -> None:
        """The JSON texts of a schema; raises NotRegular, TooLarge."""
        self._parts.effort.spend(_LOOKS_OF_A_SCHEMA)
        names: list[str] = []
        schema = resolve(schema, self._root, names, self._parts.effort)
        if recurring := {*names} & {*self._open}:
            self._add_recurring(min(recurring))
            return
        self._open += names
        self._add_resolved(schema, start, end)
        del self._open[len(self._open) - len(names) :]

    def _add_recurring(self, reference: str) -> None:
        """What a reference means within what it refers to."""
        raise NotRegular(f"{reference} refers to itself")

    def _types(self, words: Mapping[str, Any]) -> Iterable[str]:
        """The types that a value may have."""
        return types_of(words)

    def _cases(self, cases: Sequence[Any]) -> Sequence[Any]:
        """The cases of a value that are added."""
        return cases

    def _add_resolved(self, schema: Any, start: int, end: int) -> None:
        if schema is False:
            return
        words = words_of(schema)
        values = values_of(words)
        cases = words.pop("anyOf", None) or words.pop("oneOf", None)
        if values is not None:
            self._add_values(values, start, end)
        elif cases is not None:
            for case in self._cases(cases):
                self.add({"allOf": [words, case]} if words else case, start, end)
        else:
            for name in self._types(words):
                self._add_type(name, words, start, end)

    def _add_values(self, values: Sequence[Any], start: int, end: int) -> None:
        """The constants that a schema lists."""
        for value in values:
            self._parts.add_value(value, start, end)

    def _add_type(self, name: str, words: Mapping[str, Any], start: int, end: int) -> None:
        match name:
            case "null":
                self._parts.add_text(b"null", start, end)
            case "boolean":
                self._parts.add_text(b"false", start, end)
                self._parts.add_text(b"true", start, end)
            case "string":
                self._add_string(words, start, end)
            case "array":
                self._add_array(words, start, end)
            case "object":
                self._add_object(words, start, end)
            case _:
                self._parts.add_number(words, start, end, is_integer=name == "integer")

    def _add_string(self, words: Mapping[str, Any], start: int, end: int) -> None:
        self._parts.add_string(words, start, end)

    def _add_array(self, words: Mapping[str, Any], start: int, end: int) -> None:
        first = words.get("prefixItems", [])
        rest = words.get("items", True)
        least = int(words.get("minItems", 0))
        most = int(words["maxItems"]) if "maxItems" in words else None
        if rest is False:
            most = len(first) if most is None else min(most, len(first))
        close = self._parts.new()
        self._parts.add_text(b"]", close, end)
        at, count = self._parts.after(b"[", start), 0
        # The items that are told apart: those of the prefix, those that must be, those that may.
        while count < max(len(first), least, most or 0) and count != most:
            if count >= least:
                self._parts.silent[at].append(close)
            at = self._parts.after_comma(at) if count else at
            at, before = self._parts.new(), at
            self.add(first[count] if count < len(first) else rest, before, at)
            count += 1
        if most is None or most >= least:
            self._parts.silent[at].append(close)
        if most is None:
            self._add_more(rest, at, close, is_first=not count)

    def _add_more(self, rest: Any, start: int, close: int, *, is_first: bool) -> None:
        """Any number of further items."""
        item, after = self._parts.new(), self._parts.new()
        self._parts.silent[start if is_first else self._parts.after_comma(start)].append(item)
        self.add(rest, item, after)
        self._parts.silent[self._parts.after_comma(after)].append(item)
        self._parts.silent[after].append(close)

    def _add_object(self, words: Mapping[str, Any], start: int, end: int) -> None:
        properties = words.get("properties", {})
        required = dict.fromkeys(words.get("required", []))
        others = words.get("additionalProperties", True)
        missing = {name: others for name in required if name not in properties}
        close = self._parts.new()
        self._parts.add_text(b"}", close, end)
        # Where nothing was written yet there is no comma to come.
        blank: int | None = self._parts.after(b"{", start)
        after: int | None = None
        for name, schema in {**properties, **missing}.items():
            entry, done = self._entry(blank, after), self._parts.new()
            self.add(schema, self._parts.after_key(name, entry), done)
            if name in required:
                blank, after = None, done
            else:
                if after is not None:
                    self._parts.silent[after].append(done)
                after = done
        keys = self._key_of_others(words, [*properties, *missing])
        for at in (blank, after):
            if at is not None:
                self._parts.silent[at].append(close)
        if keys is not None:
            self._add_others(keys, words, self._entry(blank, after), close)

    def _entry(self, blank: int | None, after: int | None) -> int:
        """Where a key begins: at once if nothing was written, or after a comma."""
        entry = self._parts.new()
        if blank is not None:
            self._parts.silent[blank].append(entry)
        if after is not None:
            self._parts.silent[self._parts.after_comma(after)].append(entry)
        return entry

    def _key_of_others(self, words: Mapping[str, Any], names: Sequence[str]) -> Automaton | None:
        """What a key that is not named may hold, None if there are no such keys."""
        patterns = words.get("patternProperties", {})
        others = words.get("additionalProperties", True)
        if not patterns and others is False:
            return None
        if not patterns and others in (True, {}):
            raise NotRegular(
                "an object may have properties that it does not name, of any kind "
                "(additionalProperties: false forbids them)"
            )
        if len(patterns) > 1 or (patterns and others is not False):
            raise NotRegular("patternProperties come with other properties that are not named")
        if not patterns:
            return self._without(names)
        keys = self._parts.automaton_of(pattern_of(next(iter(patterns))))
        # Of other characters a reader may think otherwise.
        if not all(each.isascii() and each.isprintable() for each in names) or any(
            keys.accepts(inside(each)) for each in names
        ):
            raise NotRegular("a property has a name that a pattern may match, too")
        return keys

    def _without(self, names: Sequence[str]) -> Automaton:
        """Keys that are none of some names."""
        named = Parts(effort=self._parts.effort)
        start, end = named.new(), named.new()
        for name in names:
            named.add_text(inside(name), start, end)
        taken, keys = determine(named, start, end), self._parts.automaton_of(length_of(0, None))
        return combine(keys, taken, lambda a, b: a and not b, self._parts.effort)

    def _add_others(
        self, keys: Automaton, words: Mapping[str, Any], entry: int, close: int
    ) -> None:
        """Any number of properties that are not named."""
        patterns = words.get("patternProperties", {})
        schema = next(iter(patterns.values()), words.get("additionalProperties"))
        within, quote, after = self._parts.after(b'"', entry), self._parts.new(), self._parts.new()
        self._parts.add_automaton(keys, within, quote)
        self.add(schema, self._parts.after_space(self._parts.after(b'":', quote)), after)
        self._parts.silent[self._parts.after_comma(after)].append(entry)
        self._parts.silent[after].append(close)
