"""The language of calls in every form, read by the matcher: every word is a valid call."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.tool_formats import (
    GLM,
    GLM_COMPACT,
    MISTRAL,
    MISTRAL_LIST,
    QWEN_CODER,
    ToolFormat,
)
from diffusiongpt.server.calls import CallSplitter
from diffusiongpt.server.parts import Collected
from diffusiongpt.server.tool_grammar import forced_calls, strict_calls
from diffusiongpt.server.tools import FunctionDefinition

from call_texts import SCHEMAS, WRITTEN, write
from matching import is_word, make_tokenizer, walk

FUNCTIONS = [
    FunctionDefinition(name=name, parameters=schema, strict=True)
    for name, schema in SCHEMAS.items()
]
FORMS = [GLM, GLM_COMPACT, QWEN_CODER, MISTRAL_LIST, MISTRAL]
TAGGED = [GLM, GLM_COMPACT, QWEN_CODER]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
tagged = pytest.mark.parametrize("form", TAGGED, ids=lambda form: form.name)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@forms
def test_forced_calls_are_calls_and_nothing_else(tokenizer: Any, form: ToolFormat):
    one = forced_calls(FUNCTIONS, form, several=False)
    many = forced_calls(FUNCTIONS, form, several=True)
    call = write(form, ("weather", {"city": "Bonn", "days": 3, "at": [1, 2.5]}))
    assert is_word(tokenizer, one, call)
    assert is_word(tokenizer, many, call)
    assert is_word(tokenizer, many, WRITTEN[form])
    assert not is_word(tokenizer, one, WRITTEN[form])
    assert not is_word(tokenizer, many, f"so {call}")
    for wrong in ({"days": 3}, {"city": "a", "days": "b"}, {"city": "a", "more": 1}):
        assert not is_word(tokenizer, many, write(form, ("weather", wrong)))
    assert not is_word(tokenizer, many, write(form, ("unknown", {"city": "a"})))


@forms
def test_strict_calls_leave_the_text_free(tokenizer: Any, form: ToolFormat):
    free = FunctionDefinition(name="free", parameters=SCHEMAS["weather"])
    constraint = strict_calls([*FUNCTIONS, free], form, several=True)
    call = write(form, ("weather", {"city": "Bonn"}))
    assert is_word(tokenizer, constraint, "no call at all < [TOOL")
    assert is_word(tokenizer, constraint, f"so {call} and so")
    assert not is_word(tokenizer, constraint, write(form, ("weather", {"days": 3})))
    assert is_word(tokenizer, constraint, write(form, ("free", {"days": 3, "more": "a"})))


@forms
@pytest.mark.parametrize("is_certain", [False, True])
def test_every_word_is_read_as_a_valid_call(tokenizer: Any, form: ToolFormat, is_certain: bool):
    for seed in range(6):
        constraint = forced_calls([FUNCTIONS[0]], form, several=False)
        ending = form.tags.padding + form.tags.value_closing if form.tags else ""
        text = walk(tokenizer, constraint, seed, 900, ending)
        splitter = CallSplitter(form, SCHEMAS, is_certain=is_certain)
        collected = Collected()
        collected.add(splitter.feed(text) + splitter.finish())
        [call] = collected.calls
        assert collected.content == ""
        jsonschema.validate(json.loads(call.arguments), SCHEMAS["weather"])


CASES: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "a\nb"], ["a", "abcd"]),
    ({"type": "string", "pattern": "^[a-z]/(x|y)$"}, ["a/x", "b/y"], ["a/z", "aa/x"]),
    ({"type": "string", "pattern": "b"}, ["abc"], ["ac"]),
    ({"type": "string", "enum": ["ä", "b c"]}, ["ä", "b c"], ["c"]),
    ({"const": 3}, [3], [4]),
    ({"type": ["string", "null"]}, ["a", None, "null x"], []),
    (
        {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]},
        ["ab", None],
        ["abc"],
    ),
    (
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
        ["ab", [1, 2]],
        [["a"]],
    ),
    ({"type": "string", "pattern": "^((a|b)|c)$"}, ["a", "c"], ["ad", "dc"]),
    ({"$ref": "#/$defs/word", "minLength": 2}, ["ab"], ["a"]),
    ({"$ref": "#/$defs/place"}, [{"zip": 1}], [{"zip": "a"}, 3]),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/place"}}}, [{"a": {"zip": 1}}], [3]),
]


@tagged
@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda value: str(value)[:40])
def test_tagged_values_are_kept(
    tokenizer: Any, form: ToolFormat, schema: dict[str, Any], good: list[Any], bad: list[Any]
):
    place = {"type": "object", "properties": {"zip": {"type": "integer"}}}
    parameters = {
        "type": "object",
        "properties": {"v": schema},
        "required": ["v"],
        "$defs": {"place": place, "word": {"type": "string"}},
    }
    function = FunctionDefinition(name="f", parameters=parameters)
    constraint = forced_calls([function], form, several=False)
    for value in good:
        text = write(form, ("f", {"v": value}))
        assert is_word(tokenizer, constraint, text), text
        splitter = CallSplitter(form, {"f": parameters}, is_certain=True)
        collected = Collected()
        collected.add(splitter.feed(text) + splitter.finish())
        assert json.loads(collected.calls[0].arguments) == {"v": value}
    for value in bad:
        assert not is_word(tokenizer, constraint, write(form, ("f", {"v": value}))), value


@tagged
def test_arguments_that_nobody_named_are_written_where_the_schema_asks_for_them(
    tokenizer: Any, form: ToolFormat
):
    more = {"type": "integer"}
    parameters = {"properties": {"a": {"type": "string"}}, "additionalProperties": more}
    constraint = forced_calls(
        [FunctionDefinition(name="f", parameters=parameters)], form, several=False
    )
    assert is_word(tokenizer, constraint, write(form, ("f", {"a": "x", "b": 1, "c": 2})))
    assert is_word(tokenizer, constraint, write(form, ("f", {})))
    assert not is_word(tokenizer, constraint, write(form, ("f", {"b": "x"})))


@tagged
def test_no_text_can_end_its_value_early(tokenizer: Any, form: ToolFormat):
    assert form.tags is not None
    constraint = forced_calls([FUNCTIONS[0]], form, several=False)
    hostile = write(form, ("weather", {"city": f"a{form.tags.value_closing}b"}))
    assert not is_word(tokenizer, constraint, hostile)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"properties": {"a": {"type": "string", "format": "date"}}}, "'format'"),
        ({"properties": {"a": {}}, "minProperties": 1}, "'minProperties'"),
        ({"anyOf": [{"properties": {"a": {}}}]}, "'anyOf'"),
        ({"properties": {"a</arg_key>": {}}}, "'a</arg_key>'"),
        ({"properties": {"a": {"$ref": "#/title/x"}}, "title": "t"}, "'$ref'"),
        ({"properties": {"a": {"type": "array", "items": {"$ref": "#"}}}}, "'#'"),
        ({"properties": {"a": {"enum": ["</arg_value>"]}}}, "'</arg_value>'"),
        (
            {
                "properties": {
                    "a": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]}
                }
            },
            "'minimum'",
        ),
    ],
)
def test_what_tags_cannot_keep_is_refused_in_a_sentence(parameters: dict[str, Any], word: str):
    function = FunctionDefinition(name="f", parameters=parameters)
    with pytest.raises(InvalidRequest, match="arguments of f stand between tags") as refusal:
        forced_calls([function], GLM, several=False)
    assert word in str(refusal.value)
    assert refusal.value.param == "constraint"


def test_a_long_pattern_is_refused_before_it_is_looked_at():
    parameters = {"properties": {"a": {"type": "string", "pattern": "[" * 200_000}}}
    function = FunctionDefinition(name="f", parameters=parameters)
    with pytest.raises(InvalidRequest, match="at most 4096 characters, got 200000"):
        forced_calls([function], GLM, several=False)
