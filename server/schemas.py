"""Tells whether a value is a JSON schema at all, before anything is started."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffusiongpt.server.wire import show

MAX_DEPTH = 64
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_ONE = ("additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems")
_COUNTS = (
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("minContains", "maxContains"),
)
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def check_schema(schema: Any, where: str, depth: int = 0) -> None:
    """Refuse what is no JSON schema; words that the standard does not know are left alone.

    Args:
        where: what a sentence calls the schema.

    Raises:
        ValueError: one sentence that names the place and the value.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{where.split('.')[0]} must be nested at most {MAX_DEPTH} deep")
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where} must be a JSON schema, got {show(schema)}")
    for word, (is_valid, accepted) in _VALUES.items():
        if word in schema and not is_valid(schema[word]):
            raise ValueError(f"{where}.{word} must be {accepted}, got {show(schema[word])}")
    for path, each in _inner(schema):
        check_schema(each, f"{where}.{path}", depth + 1)


def schemas_in(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema that was checked, and the schemas in it."""
    if isinstance(schema, Mapping):
        yield schema
        for _, each in _inner(schema):
            yield from schemas_in(each)


def _inner(schema: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The schemas in a schema, each with its path."""
    found = [
        (word, schema[word])
        for word in _ONE
        # An old form of `prefixItems`.
        if word in schema and not (word == "items" and isinstance(schema[word], list))
    ]
    for word in _NAMED:
        found += [(f"{word}.{name}", each) for name, each in schema.get(word, {}).items()]
    for word in _SEVERAL:
        found += [(f"{word}.{index}", each) for index, each in enumerate(schema.get(word, ()))]
    return found


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(name, str) and name in _TYPES for name in names)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and value >= 0 and value == int(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one or several of {', '.join(_TYPES)}"),
    "required": (_are_texts, "a list of names"),
    "enum": (_is_list, "a list of at least 1 value"),
    **dict.fromkeys(("$ref", "pattern", "format"), (lambda each: isinstance(each, str), "text")),
    **dict.fromkeys(_NAMED, (lambda each: isinstance(each, dict), "an object")),
    **dict.fromkeys(_SEVERAL, (_is_list, "a list of at least 1 schema")),
    **dict.fromkeys(_COUNTS, (_is_count, "a whole number of at least 0")),
    **dict.fromkeys(_NUMBERS, (_is_number, "a number")),
}
