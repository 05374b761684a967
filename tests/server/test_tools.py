"""Calls of tools over HTTP: what is asked, and what is answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel

from diffusiongpt.engine.chat import ChatStyle, Thinking
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.tool_formats import BARE_JSON

from fakes import FakeGenerator
from live import serving_live
from tool_asks import (
    ARGUMENTS,
    ASK,
    CALL,
    CLOCK,
    CLOCK_CALL,
    NAMED,
    QUESTION,
    URL,
    WEATHER,
    client_of,
    post,
    stream,
)


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
