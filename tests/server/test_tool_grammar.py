"""The language of calls, read by the matcher itself: what is in it and what is not."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.tool_formats import BARE_JSON, HERMES, ToolFormat
from diffusiongpt.server.calls import CallSplitter
from diffusiongpt.server.parts import Collected
from diffusiongpt.server.tool_grammar import calls_or_answer, forced_calls, strict_calls
from diffusiongpt.server.tools import FunctionDefinition

from matching import is_word, make_tokenizer, walk

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = FunctionDefinition(name="get-weather", parameters=CITY, strict=True)
CLOCK = FunctionDefinition(name="clock")
FREE = FunctionDefinition(name="free", parameters=CITY)
CALL = '<tool_call>\n{"name": "get-weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
CLOCK_CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def forced(*functions: FunctionDefinition, several: bool = False, **more: Any) -> Constraint:
    return forced_calls(functions, HERMES, several=several, **more)


@pytest.mark.parametrize(
    ("text", "one", "many"),
    [
        (CALL, True, True),
        (f"{CALL}\n{CLOCK_CALL}", False, True),
        ("", False, False),
        (f"so {CALL}", False, False),
        (f"{CALL} so", False, False),
        (CALL.replace("Bonn", 'B\\"}}\\n'), True, True),
        (CALL.replace("city", "town"), False, False),
        (CALL.replace('"Bonn"', "7"), False, False),
        (CALL.replace('"Bonn"', '"Bonn", "x": 1'), False, False),
        (CALL.replace("get-weather", "clock"), False, False),
        (CALL.replace(": {", ":  {"), False, False),
    ],
)
def test_forced_calls(tokenizer: Any, text: str, one: bool, many: bool):
    assert is_word(tokenizer, forced(WEATHER, CLOCK), text) is one
    assert is_word(tokenizer, forced(WEATHER, CLOCK, several=True), text) is many


def test_a_lead_comes_first(tokenizer: Any):
    constraint = forced(CLOCK, lead="</think>\n\n")
    assert is_word(tokenizer, constraint, f"</think>\n\n{CLOCK_CALL}")
    assert not is_word(tokenizer, constraint, CLOCK_CALL)


def test_a_bare_call_is_one_object(tokenizer: Any):
    constraint = forced_calls([WEATHER], BARE_JSON, several=True)
    text = '{"name": "get-weather", "parameters": {"city": "Bonn"}}'
    assert is_word(tokenizer, constraint, text)
    assert not is_word(tokenizer, constraint, text + "\n" + text)


@pytest.mark.parametrize(
    ("text", "several", "single"),
    [
        ("no call <tool_cal> at all {\n", True, True),
        ("", True, True),
        (f"Let me see. {CALL}", True, True),
        (f"{CALL} and {CLOCK_CALL} so", True, False),
        (CALL.replace("city", "town"), False, False),
        (CALL.replace("get-weather", "free").replace("city", "town"), True, True),
        (CALL.replace("get-weather", "unknown"), False, False),
        ("see <tool_call> b", False, False),
        (CALL[:-1], False, False),
    ],
)
def test_strict_calls_in_free_text(tokenizer: Any, text: str, several: bool, single: bool):
    functions = [WEATHER, CLOCK, FREE]
    assert is_word(tokenizer, strict_calls(functions, HERMES, several=True), text) is several
    assert is_word(tokenizer, strict_calls(functions, HERMES, several=False), text) is single


@pytest.mark.parametrize(
    ("text", "is_in"),
    [
        ('{"name": "get-weather", "parameters": {"city": "Bonn"}}', True),
        ('{"name": "get-weather", "parameters": {"town": "Bonn"}}', False),
        ('{"answer": 42}', False),
        ("It is {sunny}.", True),
        ("", True),
    ],
)
def test_strict_calls_without_marks(tokenizer: Any, text: str, is_in: bool):
    constraint = strict_calls([WEATHER], BARE_JSON, several=True)
    assert is_word(tokenizer, constraint, text) is is_in


@pytest.mark.parametrize(
    ("text", "is_in"),
    [
        (CALL, True),
        (f"{CALL}\n{CLOCK_CALL}", True),
        ('{"city": "Bonn"}', True),
        ('{"town": 1, "city": "Bonn"}', False),
        ("Bonn", False),
        (f'{{"city": "Bonn"}} {CALL}', False),
    ],
)
def test_calls_or_an_answer_of_a_format(tokenizer: Any, text: str, is_in: bool):
    schema = {**CITY, "additionalProperties": False}
    answer = Constraint(kind="json_schema", source=json.dumps(schema))
    language = calls_or_answer([WEATHER, CLOCK], HERMES, answer, several=True)
    assert is_word(tokenizer, language, text) is is_in
    language = calls_or_answer([CLOCK], HERMES, Constraint(kind="json_object"), several=False)
    assert is_word(tokenizer, language, CLOCK_CALL)
    assert is_word(tokenizer, language, '{"name": "clock", "arguments": [{}, 1]}')


def schema_in(constraint: Constraint) -> dict[str, Any]:
    schema = json.loads(constraint.source.split("%json ")[1])
    del schema["x-guidance"]
    return dict(schema)


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def closed(**properties: Any) -> dict[str, Any]:
    return object_of(**properties) | {"additionalProperties": False}


INNER, REF = object_of(a={}), {"$ref": "#/$defs/x"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object"}, {"type": "object"}),
        (object_of(), closed()),
        (object_of(a=INNER), closed(a=closed(a={}))),
        (
            object_of(a=INNER) | {"additionalProperties": True},
            object_of(a=closed(a={})) | {"additionalProperties": True},
        ),
        (object_of(a={"items": INNER}), closed(a={"items": closed(a={})})),
        (object_of(a={"anyOf": [INNER, {}]}), closed(a={"anyOf": [closed(a={}), {}]})),
        (object_of(a=INNER | {"anyOf": [INNER]}), closed(a=INNER | {"anyOf": [INNER]})),
        (
            object_of(a=REF) | {"$defs": {"x": INNER}},
            closed(a=REF) | {"$defs": {"x": closed(a={})}},
        ),
        (
            object_of(oneOf={}) | {"default": {"not": {}}},
            closed(oneOf={}) | {"default": {"not": {}}},
        ),
        (object_of(a={"allOf": [INNER, INNER]}), object_of(a={"allOf": [INNER, INNER]})),
    ],
)
def test_properties_that_nobody_named_are_not_written(schema: Any, expected: Any):
    function = FunctionDefinition(name="f", parameters=schema)
    assert schema_in(forced(function)) == expected


@pytest.mark.parametrize("form", [HERMES, BARE_JSON])
def test_every_word_is_read_as_a_valid_call(tokenizer: Any, form: ToolFormat):
    definitions = [WEATHER, CLOCK, FunctionDefinition(name="n", parameters=NESTED)]
    schemas = {each.name: each.schema_of_arguments for each in definitions}
    for seed in range(12):
        constraint = forced_calls([definitions[seed % 3]], form, several=False)
        text = walk(tokenizer, constraint, seed)
        splitter = CallSplitter(form, schemas, is_certain=bool(seed % 2))
        collected = Collected()
        collected.add(splitter.feed(text) + splitter.finish())
        [call] = collected.calls
        assert collected.content == ""
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


NESTED = {
    "type": "object",
    "properties": {
        "to": {"$ref": "#/$defs/place"},
        "when": {"type": "array", "items": {"enum": ["day", "night"]}, "maxItems": 2},
        "fast": {"type": "boolean"},
    },
    "required": ["to", "when"],
    "$defs": {"place": {"type": "object", "properties": {"zip": {"type": "integer"}}}},
}
