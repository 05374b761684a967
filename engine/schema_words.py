"""What the words of a JSON schema ask, before anything is made of it. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from diffusiongpt.engine.automaton import Effort, NotRegular

_MAX_REFERENCES = 64  # one after another
_STRINGS = ("minLength", "maxLength", "pattern", "format")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_ARRAYS = ("items", "prefixItems", "minItems", "maxItems")
_OBJECTS = ("properties", "patternProperties", "additionalProperties", "required")
_CASES = ("anyOf", "oneOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_KEPT = {*_STRINGS, *_NUMBERS, *_ARRAYS, *_OBJECTS, *_CASES, "type", "enum", "const"}
# Words that assert something, and are not kept here.
_LEFT_OUT = {
    *("not", "if", "then", "else", "$dynamicRef", "$recursiveRef", "contains", "minContains"),
    *("maxContains", "uniqueItems", "additionalItems", "unevaluatedItems", "minProperties"),
    *("maxProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies"),
    *("unevaluatedProperties", "$ref", "allOf"),
}
# Of these each one changes what another means, so that they belong to one schema.
_TOGETHER = {"properties", "patternProperties", "additionalProperties", "items", "prefixItems"}
# What asserts nothing with these values.
_EMPTY: Mapping[str, Any] = {"uniqueItems": False, "minProperties": 0}
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


def resolve(schema: Any, root: Any, names: list[str], effort: Effort) -> Any:
    """A schema without references and `allOf`, whose words that assert something are in one place.

    Args:
        names: is given the references that were followed.

    Raises:
        NotRegular: it says one thing in two places, or refers to what is not there.
        TooLarge: it takes too long.
    """
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise NotRegular
    effort.spend(len(schema))
    asserting = _KEPT | _LEFT_OUT - {"$ref", "allOf"}
    own = {word: value for word, value in schema.items() if word in asserting}
    inner = schema.get("allOf", [])
    if not isinstance(inner, list):
        raise NotRegular
    if "$ref" in schema:
        inner = list(inner)
        if len(names) >= _MAX_REFERENCES or schema["$ref"] in names:
            raise NotRegular(f"{schema['$ref']} refers to itself")
        names.append(schema["$ref"])
        inner.append(_find(schema["$ref"], root))
    merged: Any = own
    for each in inner:
        merged = _merge(merged, resolve(each, root, names, effort))
    return merged


def _find(reference: Any, root: Any) -> Any:
    """What a reference within the schema means."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise NotRegular(f"it refers to {reference!r:.80}")
    found = root
    for step in filter(None, reference[1:].split("/")):
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found or "%" in name:
            raise NotRegular(f"it refers to {reference!r:.80}")
        found = found[name]
    return found


def _merge(one: Any, other: Any) -> Any:
    """What satisfies two schemas, if it can be said in one."""
    if one is False or other is False:
        return False
    if one is True or other is True:
        return other if one is True else one
    if any(not _is_plainly_same(one[word], other[word]) for word in one.keys() & other.keys()):
        raise NotRegular("two schemas ask different things of one value")
    if one.keys() & _TOGETHER and other.keys() & _TOGETHER and one.keys() != other.keys():
        raise NotRegular("two schemas share out the parts of one value")
    return {**one, **other}


def _is_plainly_same(one: Any, other: Any) -> bool:
    """Whether two words say the same, as far as that is seen at once."""
    return one is other or (isinstance(one, str | int | float) and bool(one == other))


def words_of(schema: Any) -> dict[str, Any]:
    """The words that assert something; raises NotRegular where one of them is not kept."""
    if schema is True:
        return {}
    for word in schema:
        if word in _LEFT_OUT and not (word in _EMPTY and schema[word] == _EMPTY[word]):
            raise NotRegular(f"{word} is not kept in any order")
    words = {word: value for word, value in schema.items() if word in _KEPT}
    for word, value in words.items():
        if not _IS_VALID.get(word, _is_anything)(value):
            raise NotRegular(f"{word} is not what the standard says")
    return words


def _is_anything(value: Any) -> bool:
    return True


def _is_count(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf and value == int(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_IS_VALID: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(("pattern", "format"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("properties", "patternProperties"), lambda value: isinstance(value, Mapping)),
    **dict.fromkeys(("enum", "prefixItems", *_CASES), lambda value: isinstance(value, list)),
    "required": _are_texts,
}


def values_of(words: Mapping[str, Any]) -> Sequence[Any] | None:
    """The values that are listed, None where none are."""
    listed = words.keys() & {"enum", "const"}
    if not listed:
        return None
    if len(listed) > 1 or words.keys() - listed - {"type"}:
        raise NotRegular("it lists values and asks more of them")
    values = words["enum"] if "enum" in words else [words["const"]]
    types = set(_named(words)) if "type" in words else set(_TYPES)
    return [each for each in values if _type_of(each) & types]


def _type_of(value: Any) -> set[str]:
    """The types of a value; that of an integer is a number, too."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == value // 1 else {"number"}
    if isinstance(value, str):
        return {"string"}
    return {"array"} if isinstance(value, list) else {"object"}


def types_of(words: Mapping[str, Any]) -> Iterator[str]:
    """The types that a schema names."""
    if "type" not in words:
        raise NotRegular("a value may be of any type")
    named = _named(words)
    # Every integer is a number.
    yield from (each for each in named if not (each == "integer" and "number" in named))


def _named(words: Mapping[str, Any]) -> list[str]:
    named = words["type"]
    named = named if isinstance(named, list) else [named]
    if not all(each in _TYPES for each in named):
        raise NotRegular
    return named
