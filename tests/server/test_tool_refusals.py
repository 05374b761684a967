"""What is wrong with tools, calls and results is said in one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes import FakeGenerator
from tool_asks import (
    ASK,
    CLOCK,
    NAMED,
    QUESTION,
    URL,
    client_of,
)


def function(**fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


def calling(**fields: Any) -> list[dict[str, Any]]:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return [QUESTION, {"role": "assistant", "tool_calls": [call | fields]}]


RESULT = {"role": "tool", "tool_call_id": "a", "content": "x"}
DEEP: dict[str, Any] = {}
for _ in range(80):
    DEEP = {"properties": {"a": DEEP}}

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "custom"}]}, "must have type 'function', got 'custom'", "tools.0"),
    ({"tools": [{"type": "function"}]}, "must have a function", "tools.0"),
    ({"tools": "all"}, "tools: input should be a valid list, got 'all'", "tools"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools.0.type is required", "tools.0.type"),
    ({"tools": function(name="a b")}, "got 'a b'", "tools.0.function.name"),
    ({"tools": function(name="")}, "1 to 64 letters", "tools.0.function.name"),
    ({"tools": function(name="x" * 65)}, "1 to 64 letters", "tools.0.function.name"),
    ({"tools": function(name=5)}, "tools.0.function.name", "tools.0.function.name"),
    ({"tools": [CLOCK, CLOCK]}, "must have a name each, got 'clock' twice", "tools"),
    (
        {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]},
        "tools takes at most 128 tools, got 129",
        "tools",
    ),
    ({"tools": function(parameters=[])}, "parameters", "tools.0.function.parameters"),
    (
        {"tools": function(parameters={"type": "string"})},
        "must be a JSON schema of type 'object', got type 'string'",
        "tools.0.function.parameters",
    ),
    (
        {"tools": function(parameters={"properties": {"a": {"type": "text"}}})},
        "parameters.properties.a.type must be one or several of object, array, string",
        "tools.0.function.parameters",
    ),
    (
        {"tools": function(parameters={"properties": {"a": 5}})},
        "parameters.properties.a must be a JSON schema, got 5",
        "tools.0.function.parameters",
    ),
    (
        {"tools": function(parameters={"properties": [1]})},
        "parameters.properties must be an object, got [1]",
        "tools.0.function.parameters",
    ),
    (
        {"tools": function(parameters={"required": "a"})},
        "parameters.required must be a list of names, got 'a'",
        "tools.0.function.parameters",
    ),
    (
        {"tools": function(parameters={"anyOf": []})},
        "parameters.anyOf must be a list of at least 1 schema, got []",
        "tools.0.function.parameters",
    ),
    (
        {"tools": function(parameters={"minProperties": 1e999})},
        "parameters.minProperties must be a whole number",
        "tools.0.function.parameters",
    ),
    ({"tools": function(parameters=DEEP)}, "nested at most 64", "tools.0.function.parameters"),
    ({"tools": function(strict="yes")}, "strict", "tools.0.function.strict"),
    ({"tool_choice": "maybe"}, "tool_choice must be", "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice must be", "tool_choice"),
    ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "got {'type'", "tool_choice"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice must name one of the tools ('clock, weather'), got 'f'",
        "tool_choice",
    ),
    ({"tool_choice": "required", "tools": []}, "needs tools, got none", "tool_choice"),
    ({"tool_choice": NAMED, "tools": None}, "('none'), got 'weather'", "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "parallel_tool_calls"),
    (
        {"parallel_tool_calls": False, "stop": [str(i) for i in range(16)]},
        "stop takes at most 16 strings, got 17",
        "stop",
    ),
    (
        {"structured_outputs": {"regex": "a"}},
        "structured_outputs cannot go with tools that fake may call; response_format can, got 2",
        "structured_outputs",
    ),
    ({"functions": [{"name": "f"}]}, "functions is not supported yet", "functions"),
    ({"messages": [QUESTION, RESULT]}, "must answer a call", "messages.1.tool_call_id"),
    (
        {"messages": [*calling(), RESULT, RESULT]},
        "must answer a call in tool_calls of the assistant message before it, once",
        "messages.3.tool_call_id",
    ),
    ({"messages": calling()}, "must be followed by a message with role 'tool'", "messages.2"),
    ({"messages": [*calling(), QUESTION]}, "got none for tool_call_id 'a'", "messages.2"),
    (
        {"messages": [*calling(function={"name": "f", "arguments": "[1]"}), RESULT]},
        "arguments must be the JSON text of an object, got '[1]'",
        "messages.1",
    ),
    (
        {"messages": [*calling(function={"name": "f", "arguments": "[" * 9999}), RESULT]},
        "arguments must be the JSON text of an object",
        "messages.1",
    ),
    (
        {"messages": [QUESTION, {"role": "tool", "content": "x"}]},
        "tool_call_id is required",
        "messages.1",
    ),
    ({"messages": [{"role": "assistant"}]}, "content is required", "messages.0"),
    (
        {"messages": [{**QUESTION, "tool_calls": calling()[1]["tool_calls"]}]},
        "tool_calls belong to an assistant message, got role 'user'",
        "messages.0",
    ),
]


@pytest.mark.parametrize(("fields", "sentence", "param"), BAD, ids=lambda value: str(value)[:40])
def test_bad_tools_are_refused_in_one_sentence(fields: dict[str, Any], sentence: str, param: str):
    generator = FakeGenerator()
    # As text: json= refuses numbers that are too large to be one.
    body = json.dumps(ASK | fields).replace("Infinity", "1e999")
    headers = {"content-type": "application/json"}
    answer = client_of(generator).post(URL, content=body, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert sentence in error["message"]
    assert "\n" not in error["message"]
    assert error["param"] == param
    assert generator.generations == []
