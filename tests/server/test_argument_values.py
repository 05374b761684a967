"""What schemas say of arguments' types, however they name each other."""

from __future__ import annotations

from typing import Any

import pytest

from diffusiongpt.server.argument_values import TYPES, resolve, restore, types_of

ROOT: dict[str, Any] = {
    "properties": {"a/b": {"type": "integer"}},
    "$defs": {
        "text": {"type": "string"},
        "tree": {"anyOf": [{"type": "null"}, {"type": "array"}, {"$ref": "#/$defs/tree"}]},
        "circle": {"$ref": "#/$defs/circle"},
        "boom": {"anyOf": [{"$ref": "#/$defs/boom"}] * 3},
    },
    "title": "a title",
}


def ref(name: str, **beside: Any) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}", **beside}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"$ref": "#/properties/a~1b"}, {"integer"}),
        (ref("tree"), {"null", "array"}),
        (ref("tree", type="null"), {"null"}),
        (ref("circle"), set()),
        (ref("boom"), set()),
        ({"anyOf": [ref("text"), {"type": "number"}]}, {"string", "number", "integer"}),
        ({"allOf": [ref("tree"), {"type": ["array", "string"]}]}, {"array"}),
        (ref("nowhere"), TYPES),
        ({"$ref": "#/title/x"}, TYPES),
        ({"$ref": "http://localhost/schema"}, TYPES),
        (True, TYPES),
    ],
)
def test_types_are_found_through_references_and_circles(schema: Any, types: set[str]):
    assert types_of(schema, ROOT) == types


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        (ref("text"), {"type": "string"}),
        (ref("text", description="d"), {"type": "string", "description": "d"}),
        (ref("text", maxLength=3), {"type": "string", "maxLength": 3}),
        (ref("text", type="string"), ref("text", type="string")),
        (ref("circle"), ref("circle")),
        (ref("nowhere"), ref("nowhere")),
        ({"$ref": "#"}, ROOT),
    ],
)
def test_a_reference_means_a_schema_and_what_stands_beside_it(schema: Any, found: Any):
    assert resolve(schema, ROOT) == found


def test_a_number_too_large_is_text_as_it_stands():
    assert restore("1e999", True, {}) == '"1e999"'
    assert restore("-0.5e3", True, {}) == "-0.5e3"
