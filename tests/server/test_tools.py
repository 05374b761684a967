"""Calls of tools over HTTP: what is asked, what is answered, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel
from starlette.testclient import TestClient

from diffusiongpt.engine.chat import ChatStyle, Thinking
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.tool_formats import BARE_JSON, HERMES
from diffusiongpt.server.answers import ChatAnswer, ChatChunk
from diffusiongpt.server.app import create_app
from diffusiongpt.server.calls import CallSplitter
from diffusiongpt.server.parts import Collected
from diffusiongpt.server.settings import Settings

from fakes import FakeGenerator
from live import serving_live
from wire import events_of, replay

URL = "/v1/chat/completions"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
QUESTION = {"role": "user", "content": "hi"}
ASK: dict[str, Any] = {"model": "fake", "messages": [QUESTION], "tools": [WEATHER, CLOCK]}
ARGUMENTS = '{"city": "Bonn 🎈", "days": 3}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
CLOCK_CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "weather"}}


def client_of(generator: FakeGenerator) -> TestClient:
    return TestClient(create_app(generator, Settings()))


def post(text: str, **fields: Any) -> tuple[dict[str, Any], FakeGenerator]:
    generator = FakeGenerator(text)
    answer = client_of(generator).post(URL, json=ASK | fields)
    assert answer.status_code == 200, answer.text
    ChatAnswer.model_validate_json(answer.text)
    return answer.json()["choices"][0], generator


def stream(text: str, **fields: Any) -> list[dict[str, Any]]:
    answer = client_of(FakeGenerator(text)).post(URL, json=ASK | {"stream": True} | fields)
    events = events_of(answer.text)
    for event in events:
        ChatChunk.model_validate_json(json.dumps(event))
    return events


def assemble(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together, and its finish reason."""
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    for choice in (event["choices"][0] for event in events if event["choices"]):
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            if delta.get(name) is not None:
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                assert call["id"].startswith("call_")
                assert call["type"] == "function"
                message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
            message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
        message["finish_reason"] = choice["finish_reason"]
    return message


def test_a_call_is_answered_as_openai_does():
    choice, _ = post(CALL)
    call = choice["message"]["tool_calls"][0]
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


def test_text_before_calls_is_content():
    choice, _ = post(f"Let me see.\n{CALL}\n{CLOCK_CALL}")
    assert choice["message"]["content"] == "Let me see."
    names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
    assert names == ["weather", "clock"]
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2


def test_an_answer_without_a_call_is_as_it_was():
    choice, _ = post("Hello <b>world</b> ")
    assert choice["message"] == {
        "role": "assistant",
        "content": "Hello <b>world</b> ",
        "refusal": None,
    }
    assert choice["finish_reason"] == "stop"


def test_a_call_of_an_unknown_tool_is_text():
    text = CALL.replace("weather", "wheather")
    choice, _ = post(text)
    assert choice["message"]["content"] == text
    assert choice["finish_reason"] == "stop"


def test_where_no_tool_may_be_called_nothing_is_read_as_a_call_and_nobody_hears_of_tools():
    choice, generator = post(CALL, tool_choice="none")
    assert choice["message"]["content"] == CALL
    assert generator.tools == []
    choice, generator = post(CALL, tools=[])
    assert choice["message"]["content"] == CALL
    assert generator.generations[0].params.constraint is None


def test_the_model_is_told_of_every_tool():
    _, generator = post("no")
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    clock = {"type": "function", "function": {"name": "clock", "parameters": parameters}}
    assert generator.tools == [WEATHER, clock]
    assert generator.generations[0].params.constraint is None


def test_one_call_at_most_ends_with_the_first():
    choice, generator = post(f"{CALL}\n{CLOCK_CALL}", parallel_tool_calls=False, stop="x")
    assert generator.generations[0].params.stop == ("x", "</tool_call>")
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "names", "several"),
    [
        ({"tool_choice": "required"}, ["weather", "clock"], True),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["weather", "clock"], False),
        ({"tool_choice": NAMED}, ["weather"], False),
    ],
)
def test_forced_calls_are_a_language(fields: dict[str, Any], names: list[str], several: bool):
    choice, generator = post(CALL, **fields)
    constraint = generator.generations[0].params.constraint
    assert constraint is not None
    assert constraint.kind == "grammar"
    assert [name for name in ("weather", "clock") if f'\\"{name}\\"' in constraint.source] == names
    assert (")*" in constraint.source) is several
    assert choice["finish_reason"] == "tool_calls"
    assert [tool["function"]["name"] for tool in generator.tools] == ["weather", "clock"]


def test_a_strict_function_constrains_the_calls_of_a_free_answer():
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    choice, generator = post(f"so\n{CALL}", tools=[strict, CLOCK])
    constraint = generator.generations[0].params.constraint
    assert constraint is not None
    assert "[lazy]" in constraint.source
    assert choice["message"]["content"] == "so"
    assert len(choice["message"]["tool_calls"]) == 1


FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "integer"}}}


def test_a_format_is_for_answers_that_do_not_call():
    choice, generator = post("17", response_format=FORMAT)
    constraint = generator.generations[0].params.constraint
    assert constraint is not None
    assert constraint.source.startswith(
        'start: calls ("\\n" calls)* | answer\nanswer: %json {"type"'
    )
    assert choice["message"]["content"] == "17"
    choice, generator = post(CALL, response_format=FORMAT)
    assert choice["finish_reason"] == "tool_calls"
    for fields in ({"tool_choice": NAMED}, {"tool_choice": "required"}):
        _, generator = post(CALL, response_format=FORMAT, **fields)
        constraint = generator.generations[0].params.constraint
        assert constraint is not None
        assert "answer" not in constraint.source
    _, generator = post("17", response_format=FORMAT, tool_choice="none")
    constraint = generator.generations[0].params.constraint
    assert constraint is not None
    assert constraint.kind == "json_schema"


def test_a_format_does_not_go_with_calls_that_have_no_marks():
    generator = FakeGenerator(chat=ChatStyle(knows_tools=True, tool_format=BARE_JSON))
    answer = client_of(generator).post(URL, json=ASK | {"response_format": FORMAT})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
    assert generator.generations == []


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([CALL, CLOCK_CALL, "<tool_", "call>", " ", "\n", "Grüße", "🎈", "{"]),
        min_size=1,
        max_size=5,
    ),
    fields=st.sampled_from([{}, {"tool_choice": "required"}, {"tool_choice": "none"}]),
    frames=st.sampled_from(["off", "delta", "full"]),
    seed=st.integers(0, 9),
)
def test_streamed_whole_and_replayed_are_the_same(
    pieces: list[str], fields: dict[str, Any], frames: str, seed: int
):
    text = "".join(pieces)
    choice, _ = post(text, seed=seed, **fields)
    events = stream(text, seed=seed, diffusion={"frames": frames}, **fields)
    message = assemble(events)
    calls = [call["function"] for call in choice["message"].get("tool_calls", ())]
    assert message["tool_calls"] == calls
    assert (message["content"] or None) == (choice["message"]["content"] or None)
    assert message["finish_reason"] == choice["finish_reason"]
    if frames == "off":
        return
    # Frames show the text as the model wrote it; reading it gives the message.
    assert replay(events) == text
    if fields.get("tool_choice") is None:
        splitter = CallSplitter(HERMES, {"weather": {}, "clock": {}})
        collected = Collected()
        collected.add(splitter.feed(replay(events)) + splitter.finish())
        assert collected.content == (choice["message"]["content"] or "")
        assert [call.arguments for call in collected.calls] == [c["arguments"] for c in calls]


def test_marks_never_reach_the_content_of_a_stream():
    for seed in range(5):
        events = stream(f"Let me see.\n{CALL}", seed=seed)
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
        assert deltas[0] == {"role": "assistant", "content": None}


def test_choices_call_on_their_own():
    generator = FakeGenerator([CALL, "no", CLOCK_CALL])
    body = client_of(generator).post(URL, json=ASK | {"n": 3}).json()
    reasons = [choice["finish_reason"] for choice in body["choices"]]
    assert reasons == ["tool_calls", "stop", "tool_calls"]
    generator = FakeGenerator([CALL, "no", CLOCK_CALL])
    text = client_of(generator).post(URL, json=ASK | {"n": 3, "stream": True}).text
    for index, choice in enumerate(body["choices"]):
        own = [e for e in events_of(text) if e["choices"][0]["index"] == index]
        calls = [call["function"] for call in choice["message"].get("tool_calls", ())]
        assert assemble(own)["tool_calls"] == calls


def test_log_probabilities_are_those_of_the_whole_text():
    choice, _ = post(CALL, logprobs=True)
    assert len(choice["logprobs"]["content"]) == len(CALL.encode())
    events = stream(CALL, logprobs=True)
    settled = [e["choices"][0]["logprobs"] for e in events if e["choices"][0]["logprobs"]]
    assert sum(len(each["content"]) for each in settled) == len(CALL.encode())


def test_an_answer_that_ends_inside_of_a_forced_call_says_length():
    generator = FakeGenerator(CALL[:60])
    submit = generator.submit

    def cut_off(*args: Any) -> Any:
        generation = submit(*args)
        generation.change_last(finish_reason=FinishReason.LENGTH)
        return generation

    generator.submit = cut_off  # type: ignore[method-assign]
    choice = client_of(generator).post(URL, json=ASK | {"tool_choice": NAMED}).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert ARGUMENTS.startswith(choice["message"]["tool_calls"][0]["function"]["arguments"])


HISTORY: list[dict[str, Any]] = [
    QUESTION,
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "clock", "arguments": ""}},
            {
                "id": "b",
                "type": "function",
                "function": {"name": "weather", "arguments": ARGUMENTS},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "sunny"}]},
    {"role": "tool", "tool_call_id": "a", "content": "noon"},
]


def test_calls_and_results_reach_the_template():
    _, generator = post("It is noon.", messages=HISTORY)
    assert generator.messages == [
        QUESTION,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "clock", "arguments": {}}},
                {
                    "id": "b",
                    "type": "function",
                    "function": {"name": "weather", "arguments": json.loads(ARGUMENTS)},
                },
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "b"},
        {"role": "tool", "content": "noon", "tool_call_id": "a"},
    ]


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


def test_a_thought_that_the_prompt_opens_is_closed_before_a_forced_call():
    thinking = Thinking(opening="<think>", closing="</think>", opened=frozenset({None}))
    generator = FakeGenerator(f"</think>\n\n{CALL}", chat=ChatStyle(thinking=thinking))
    body = client_of(generator).post(URL, json=ASK | {"tool_choice": NAMED}).json()
    constraint = generator.generations[0].params.constraint
    assert constraint is not None
    assert constraint.source.startswith('start: "</think>\\n\\n" calls')
    assert body["choices"][0]["message"]["content"] is None
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("</think>")


def test_a_forced_call_switches_thinking_off_where_it_can():
    thinking = Thinking(
        opening="<think>", closing="</think>", can_switch=True, opened=frozenset({None, True})
    )
    generator = FakeGenerator(CALL, chat=ChatStyle(thinking=thinking))
    client_of(generator).post(URL, json=ASK | {"tool_choice": NAMED})
    assert generator.enable_thinking is False
    constraint = generator.generations[0].params.constraint
    assert constraint is not None
    assert constraint.source.startswith("start: calls\n")


class GetWeather(BaseModel):
    """The weather of a place."""

    city: str
    days: int


def test_openais_own_client_reads_calls():
    text = f"Let me see.\n{CALL}\n{CLOCK_CALL}"
    with serving_live(FakeGenerator(text)) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        ask = {name: ASK[name] for name in ("model", "messages", "tools")}
        whole = client.chat.completions.create(**ask).choices[0]
        assert whole.finish_reason == "tool_calls"
        with client.chat.completions.stream(**ask) as events:
            last = events.get_final_completion().choices[0]
        assert last.finish_reason == "tool_calls"
        assert last.message.content == whole.message.content == "Let me see."
        both = [choice.message.tool_calls or [] for choice in (whole, last)]
        for calls in both:
            assert all(isinstance(call, ChatCompletionMessageFunctionToolCall) for call in calls)
        first, second = ([(c.function.name, c.function.arguments) for c in calls] for calls in both)
        assert first == second == [("weather", ARGUMENTS), ("clock", "{}")]


def test_openais_own_client_parses_calls_of_pydantic_tools():
    tool = pydantic_function_tool(GetWeather)
    with serving_live(FakeGenerator(CALL.replace("weather", "GetWeather"))) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        done = client.chat.completions.parse(
            model="fake", messages=[QUESTION], tools=[tool], tool_choice="required"
        )
        [call] = done.choices[0].message.tool_calls
        assert call.function.parsed_arguments == GetWeather(city="Bonn 🎈", days=3)
