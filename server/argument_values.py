"""What an argument's text means by its schema: tagged calls write strings as they are and
everything else as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

Schema = Mapping[str, Any] | bool
TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
TEXT = frozenset({"string"})
# Words that say nothing of what a value may be.
NOTES = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "$defs", "definitions"),
    }
)
_DEEPEST = 16
# As Python writes them: some templates show the model calls with them.
_PYTHON = {"True": "true", "False": "false", "None": "null"}


def schema_of(key: str, parameters: Mapping[str, Any]) -> Schema:
    """What the argument `key` must be; anything, where nobody said."""
    found = resolve(parameters, parameters)
    if not isinstance(found, Mapping):
        return True
    schema: Schema = found.get("properties", {}).get(key, found.get("additionalProperties", True))
    return schema


def resolve(schema: Schema, root: Mapping[str, Any]) -> Schema:
    """The schema that a `$ref` within the root means, with what stands beside the reference.

    Other schemas are themselves, and so is one whose reference leads nowhere, in a circle, or to
    words that stand beside it, too.
    """
    found = schema
    for _ in range(_DEEPEST):
        if not isinstance(found, Mapping) or not isinstance(found.get("$ref"), str):
            return found
        meant = _follow(found["$ref"], root)
        beside = {word: value for word, value in found.items() if word != "$ref"}
        if isinstance(meant, bool) and not beside:
            return meant
        if not isinstance(meant, Mapping) or meant.keys() & beside.keys() - NOTES:
            return found
        found = {**meant, **beside}
    return schema


def _follow(reference: str, root: Mapping[str, Any]) -> Any:
    """What a JSON pointer (RFC 6901) behind "#" leads to, None if nowhere."""
    found: Any = root
    if reference != "#" and not reference.startswith("#/"):
        return None
    for part in reference.split("/")[1:]:
        if not isinstance(found, Mapping):
            return None
        found = found.get(part.replace("~1", "/").replace("~0", "~"))
    return found


def types_of(schema: Schema, root: Mapping[str, Any]) -> frozenset[str]:
    """Types that a value may have; with "number" comes "integer"."""
    return _Types(root).of(schema)


class _Types:
    """Finds types, looking at every schema once: they may name each other and themselves."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._found: dict[str, frozenset[str]] = {}

    def of(self, schema: Schema) -> frozenset[str]:
        if isinstance(schema, Mapping) and isinstance(reference := schema.get("$ref"), str):
            if reference not in self._found:
                self._found[reference] = frozenset()  # a circle adds nothing
                meant = _follow(reference, self._root)
                self._found[reference] = TYPES if meant is None else self.of(meant)
            return self._found[reference] & self._without_reference(schema)
        return self._without_reference(schema)

    def _without_reference(self, schema: Schema) -> frozenset[str]:
        if isinstance(schema, bool):
            return TYPES
        found = TYPES
        if "type" in schema:
            named = schema["type"]
            types = {named} if isinstance(named, str) else set(named)
            found &= types | ({"integer"} if "number" in types else set())
        if (listed := values_of(schema)) is not None:
            found &= frozenset(type_of(value) for value in listed)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                found &= frozenset().union(*(self.of(each) for each in schema[word]))
        for each in schema.get("allOf", ()):
            found &= self.of(each)
        return found


def values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists, None where it lists none."""
    if "const" in schema:
        return [schema["const"]]
    return schema.get("enum")


def type_of(value: Any) -> str:
    """The JSON type of a value; 3.0 is an integer."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "integer" if value == value // 1 else "number"
        case list():
            return "array"
    return "object"


def spell(value: Any) -> str:
    """A value as a tagged call writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def restore(text: str, schema: Schema, root: Mapping[str, Any]) -> str:
    """The JSON text of the value that was written, a string where it is nothing else."""
    schema = resolve(schema, root)
    for value in (None if isinstance(schema, bool) else values_of(schema)) or ():
        if spell(value) == text:
            return json.dumps(value, ensure_ascii=False)
    types = types_of(schema, root)
    candidate = text.strip()
    if "string" not in types:
        candidate = _PYTHON.get(candidate, candidate)
    if types != TEXT and _is_one_of(candidate, types - TEXT):
        return candidate
    return json.dumps(text, ensure_ascii=False)


def _is_one_of(text: str, types: frozenset[str]) -> bool:
    try:
        return type_of(read_value(text)) in types
    except ValueError:
        return False


def read_value(text: str) -> Any:
    """The value of a JSON text; raises ValueError where it is none, or an object in it says
    something twice."""
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_refuse_twins,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object gives a name twice")
    return value
