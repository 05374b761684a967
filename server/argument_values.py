"""What an argument's text means by its schema: tagged calls write strings as they are and
everything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

Schema = Mapping[str, Any] | bool
TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
TEXT = frozenset({"string"})
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
    """The schema that a `$ref` into the root's definitions means; other schemas are themselves."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            break
        place, _, name = reference.removeprefix("#/").partition("/")
        schema = root.get(place, {}).get(name, True)
    return schema


def types_of(schema: Schema, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """Types that a value may have; with "number" comes "integer"."""
    schema = resolve(schema, root)
    if isinstance(schema, bool) or depth > _DEEPEST:
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
            found &= frozenset().union(*(types_of(e, root, depth + 1) for e in schema[word]))
    for each in schema.get("allOf", ()):
        found &= types_of(each, root, depth + 1)
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
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twins)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object gives a name twice")
    return value
