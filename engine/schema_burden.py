"""What a JSON schema would cost llguidance, counted before it sees it: see `burden.py`.
Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusiongpt.engine.chains import heaviest_chain
from diffusiongpt.engine.errors import InvalidRequest

_MAX_LEVELS = 400  # of a schema, references followed
_MAX_PROPERTIES = 3_000  # of an object
_MAX_OPTIONAL = 1_500  # of an object; of several the root of the sum of their squares
_MAX_VALUES, _MAX_LISTS = 20_000, 4_000  # in enum and const; lists and objects among them
_MAX_MATCHES = 12  # expressions that one value must match; each doubles what is looked at
_MAX_MODULUS = 20_000  # of a number's multiples, without factors 2 and 5
_MAX_REPEATS = 2_000

_REPEAT = re.compile(r"(?<!\\)(?:\\\\)*(?:[?*+]|\{\d)")
_DEFINITIONS = ("$defs", "definitions")
_CONSTANTS = ("enum", "const", "default", "examples")
# What these hold are names of the schema's own, not words.
_NAMED = {"properties", "patternProperties", "dependentSchemas", *_DEFINITIONS}


def check_count(count: int, most: int, kind: str, what: str) -> None:
    """Refuse more of something than a kind of constraint takes; raises InvalidRequest."""
    if count > most:
        raise InvalidRequest(
            f"this {kind} cannot be kept: it takes at most {most} {what}, got {count}", "constraint"
        )


def check_repeats(kind: str, *expressions: str) -> None:
    """Refuse too many repeats in expressions; raises InvalidRequest."""
    count = sum(len(_REPEAT.findall(each)) for each in expressions)
    check_count(count, _MAX_REPEATS, kind, "repeats (?, *, +, {n}) in its expressions")


def check_schema(schema: Any, kind: str) -> None:
    """Refuse a schema that would take too long to read.

    Args:
        kind: of the constraint that it is or is in, for the sentence.

    Raises:
        InvalidRequest: it has more of something than is accepted.
    """
    objects = list(_objects_in(schema))
    check_count(_levels(schema), _MAX_LEVELS, kind, "levels, references followed")
    _check_properties(objects, kind)
    _check_constants(objects, kind)
    check_repeats(kind, *_patterns_in(objects))
    _check_meeting(schema, kind)


def _objects_in(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Every object of a schema's JSON, but those in constants."""
    line = [(schema, False)]
    while line:
        each, is_named = line.pop()
        if isinstance(each, Mapping) and not is_named:
            yield each
        line += _inside(each, is_named, _CONSTANTS)


def _inside(json: Any, is_named: bool, skipped: Collection[str]) -> Iterator[tuple[Any, bool]]:
    """What the JSON of a schema holds, and whether that names schemas; words may be skipped."""
    if isinstance(json, list):
        yield from ((each, False) for each in json)
    elif isinstance(json, Mapping):
        for word, each in json.items():
            if is_named or word not in skipped:
                yield each, not is_named and word in _NAMED


def _patterns_in(objects: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for each in objects:
        if isinstance(each.get("pattern"), str):
            yield each["pattern"]
        if isinstance(each.get("patternProperties"), Mapping):
            yield from each["patternProperties"]


def _check_properties(objects: Iterable[Mapping[str, Any]], kind: str) -> None:
    squares = 0
    for each in objects:
        properties, required = each.get("properties"), each.get("required")
        if isinstance(properties, Mapping):
            check_count(len(properties), _MAX_PROPERTIES, kind, "properties of an object")
            names = required if isinstance(required, list) else []
            known = {name for name in names if isinstance(name, str)} & properties.keys()
            squares += (len(properties) - len(known)) ** 2
    check_count(math.isqrt(squares), _MAX_OPTIONAL, kind, "properties that may be missing")


def _check_constants(objects: Iterable[Mapping[str, Any]], kind: str) -> None:
    line = [each[word] for each in objects for word in ("enum", "const") if word in each]
    num_values = num_lists = 0
    while line:
        value = line.pop()
        num_values += 1
        if isinstance(value, Mapping | list):
            num_lists += 1
            line += value.values() if isinstance(value, Mapping) else value
    check_count(num_values, _MAX_VALUES, kind, "values in enum and const")
    check_count(num_lists, _MAX_LISTS, kind, "lists and objects in enum and const")


def _levels(schema: Any) -> int:
    """How deep a schema goes, references followed; circles count as a whole, once."""
    places = {"#": schema}
    edges: dict[str, list[str]] = {}
    weight: dict[str, int] = {}
    line = ["#"]
    while line:
        place = line.pop()
        if place in edges:
            continue
        found: list[str] = []
        weight[place] = _depth(places[place], found)
        edges[place] = list(dict.fromkeys(found))
        for each in edges[place]:
            places.setdefault(each, _at(each, schema))
            line.append(each)
    return heaviest_chain(edges, weight)


def _depth(schema: Any, references: list[str]) -> int:
    """How deep the JSON of a schema is nested; what it refers to is added to `references`."""
    deepest, skipped = 0, {*_CONSTANTS, *_DEFINITIONS}
    line = [(schema, False, 1)]
    while line:
        each, is_named, depth = line.pop()
        deepest = max(deepest, depth)
        if isinstance(each, Mapping) and not is_named and isinstance(each.get("$ref"), str):
            references.append(each["$ref"])
        line += [(value, named, depth + 1) for value, named in _inside(each, is_named, skipped)]
    return deepest


def _at(reference: str, root: Any) -> Any:
    """What a reference within the schema means; all of it, where that is not plain."""
    found = root
    for step in filter(None, reference.removeprefix("#").split("/")):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            return list(root.values()) if isinstance(root, Mapping) else root
    return found


@dataclass(slots=True)
class _Met:
    """What one value must match, by the name of its property: expressions, and a modulus."""

    matches: dict[str, int] = field(default_factory=dict)
    modulus: dict[str, int] = field(default_factory=dict)

    def both(self, other: _Met) -> None:
        """Of what a value must satisfy as well."""
        for name, count in other.matches.items():
            self.matches[name] = min(self.matches.get(name, 0) + count, 10**6)
        for name, each in other.modulus.items():
            self.modulus[name] = min(math.lcm(self.modulus.get(name, 1), each), 10**30)

    def either(self, other: _Met, *, under: str | None = None) -> None:
        """Of what another value must satisfy, or the same value otherwise.

        Args:
            under: the property that it is of, if it is one.
        """
        for mine, theirs in ((self.matches, other.matches), (self.modulus, other.modulus)):
            for name, each in theirs.items():
                name = under if under is not None and not name else name
                mine[name] = max(mine.get(name, 0), each)


def _check_meeting(schema: Any, kind: str) -> None:
    try:
        met = _Meeting(schema).of(schema)
    except RecursionError:
        check_count(_MAX_LEVELS + 1, _MAX_LEVELS, kind, "levels, references followed")
        raise
    check_count(
        max(met.matches.values(), default=0), _MAX_MATCHES, kind, "expressions for one value"
    )
    modulus = max(met.modulus.values(), default=1)
    check_count(modulus, _MAX_MODULUS, kind, "as multipleOf, factors 2 and 5 aside")


class _Meeting:
    """Finds what meets at one value: what `allOf` and references bring together."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, _Met] = {}

    def of(self, schema: Any) -> _Met:
        """Of a schema and its values; within itself it adds nothing."""
        if not isinstance(schema, Mapping):
            return _Met()
        if id(schema) not in self._known:
            self._known[id(schema)] = _Met()
            self._known[id(schema)] = self._of(schema)
        return self._known[id(schema)]

    def _of(self, schema: Mapping[str, Any]) -> _Met:
        met = _Met()
        for word in ("pattern", "format"):
            if isinstance(schema.get(word), str):
                met.matches[""] = met.matches.get("", 0) + 1
        if "multipleOf" in schema:
            met.modulus[""] = _coprime(schema["multipleOf"])
        for name, each in _values_of(schema):
            met.either(self.of(each), under=name)
        if isinstance(schema.get("$ref"), str):
            met.both(self.of(_at(schema["$ref"], self._root)))
        for each in _list_of(schema, "allOf"):
            met.both(self.of(each))
        for word in ("anyOf", "oneOf"):
            cases = _Met()
            for each in _list_of(schema, word):
                cases.either(self.of(each))
            met.both(cases)
        return met


def _values_of(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas of what is in a value, and their properties' names."""
    for word in ("properties", "patternProperties"):
        if isinstance(schema.get(word), Mapping):
            yield from schema[word].items()
    for word in ("items", "additionalProperties", "contains", "propertyNames"):
        yield f"{word} ", schema.get(word)
    for each in _list_of(schema, "prefixItems"):
        yield "items ", each


def _list_of(schema: Mapping[str, Any], word: str) -> list[Any]:
    found = schema.get(word)
    return found if isinstance(found, list) else []


def _coprime(number: Any) -> int:
    """What is left of a modulus without factors 2 and 5 and its decimal point."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < 1e300:
        return 1
    digits = (
        f"{number:.15g}".replace(".", "").partition("e")[0] if isinstance(number, float) else number
    )
    left = int(digits) or 1
    for factor in (2, 5):
        while left % factor == 0:
            left //= factor
    return left
