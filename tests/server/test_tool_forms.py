"""Forms of calls: how each is read, and that it is kept to what the model may write."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from diffusiongpt.engine.chat import ChatStyle
from diffusiongpt.engine.tool_formats import (
    FORMATS,
    GLM,
    GLM_COMPACT,
    HERMES,
    MISTRAL,
    MISTRAL_LIST,
    QWEN_CODER,
    ToolFormat,
)
from diffusiongpt.server.app import create_app
from diffusiongpt.server.calls import CallSplitter, new_call_id
from diffusiongpt.server.parts import Collected
from diffusiongpt.server.settings import Settings

from call_texts import SCHEMAS, VALUES, WRITTEN, write
from fakes import FakeGenerator
from wire import events_of


def read(form: ToolFormat, pieces: list[str], *, is_certain: bool = False) -> Collected:
    ids = itertools.count()
    splitter = CallSplitter(form, SCHEMAS, is_certain=is_certain, make_id=lambda: f"id{next(ids)}")
    collected = Collected()
    for piece in pieces:
        collected.add(splitter.feed(piece))
    collected.add(splitter.finish())
    return collected


def calls_of(collected: Collected) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in collected.calls]


@pytest.mark.parametrize("form", WRITTEN, ids=lambda form: form.name)
@pytest.mark.parametrize("is_certain", [False, True])
def test_calls_are_read_as_their_family_writes_them(form: ToolFormat, is_certain: bool):
    calls = [("weather", {"city": "Bonn", "days": 3}), ("clock", {})]
    assert write(form, *calls) == WRITTEN[form]
    found = read(form, [f"Let me see. {WRITTEN[form]} so"], is_certain=is_certain)
    assert calls_of(found) == calls
    assert found.content.split() == ["Let", "me", "see.so"]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("is_certain", [False, True])
def test_values_come_back_with_their_types(form: ToolFormat, is_certain: bool):
    found = read(form, list(write(form, ("weather", VALUES))), is_certain=is_certain)
    [(name, arguments)] = calls_of(found)
    assert (name, arguments, found.content) == ("weather", VALUES, "")
    jsonschema.validate(arguments, SCHEMAS["weather"])


@pytest.mark.parametrize("form", WRITTEN, ids=lambda form: form.name)
def test_certain_arguments_go_out_as_they_come(form: ToolFormat):
    splitter = CallSplitter(form, SCHEMAS, is_certain=True)
    text = write(form, ("weather", {"city": "Bonn am Rhein"}))
    fragments = [
        part.fragment
        for letter in text
        for part in splitter.feed(letter)
        if hasattr(part, "fragment")
    ]
    assert "".join(fragments) == '{"city": "Bonn am Rhein"}'
    assert len(fragments) > 10


PIECES = {
    "tagged": [
        *("<tool_call>", "</tool_call>", "weather", "clock", "\n", "<arg_key>", "</arg_key>"),
        *("<arg_value>", "</arg_value>", "days", "city", "3", "x", " ", "<", "</arg"),
        *("<function=", ">", "<parameter=", "</parameter>", "</function>", "</par", "<fun"),
    ],
    "object": [
        "[TOOL_CALLS]",
        "[",
        "]",
        ", ",
        "{",
        '"name": "clock"',
        '"arguments": {}',
        "}",
        " a",
    ],
    "named": ["[TOOL_CALLS]", "clock", "[ARGS]", "[CALL_ID]", "a1", "{", "}", '"a": 1', " ", "x"],
}


@settings(max_examples=200, deadline=None)
@given(data=st.data(), form=st.sampled_from(list(WRITTEN)), is_certain=st.booleans())
def test_any_chunking_gives_the_same_parts(data: st.DataObject, form: ToolFormat, is_certain: bool):
    pieces = data.draw(
        st.lists(
            st.sampled_from(
                [*PIECES[form.spelling], WRITTEN[form], write(form, ("weather", VALUES))]
            ),
            max_size=9,
        )
    )
    whole = read(form, ["".join(pieces)], is_certain=is_certain)
    assert read(form, pieces, is_certain=is_certain) == whole
    assert read(form, list("".join(pieces)), is_certain=is_certain) == whole


def test_a_name_is_one_where_a_tag_comes_after_it():
    """However it comes, and though the engine should not let the model write it."""
    text = "<tool_call>weather<tool_call>"
    for pieces in ([text], list(text)):
        collected = read(GLM, pieces, is_certain=True)
        assert (collected.content, collected.calls) == (text, [])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), form=st.sampled_from(list(WRITTEN)))
def test_what_is_no_call_stays_text(data: st.DataObject, form: ToolFormat):
    """Without functions on offer there are no calls, and nothing is lost."""
    text = "".join(data.draw(st.lists(st.sampled_from([*PIECES[form.spelling], WRITTEN[form]]))))
    splitter = CallSplitter(form, {})
    collected = Collected()
    collected.add(splitter.feed(text) + splitter.finish())
    assert "".join(collected.content.split()) == "".join(text.split())


BROKEN = [
    (GLM, "<tool_call>wheather\n</tool_call>"),
    (GLM, "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bonn"),
    (GLM, "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n"),
    (GLM, "<tool_call>weather\n<arg_key>city</arg_key>Bonn</tool_call>"),
    (
        GLM_COMPACT,
        "<tool_call>weather"
        + "<arg_key>city</arg_key><arg_value>a</arg_value>" * 2
        + "</tool_call>",
    ),
    (QWEN_CODER, "<tool_call>\n<function=nothing>\n</function>\n</tool_call>"),
    (QWEN_CODER, "<tool_call>\n<function=weather>\nBonn\n</function>\n</tool_call>"),
    (QWEN_CODER, "<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n"),
    (MISTRAL_LIST, '[TOOL_CALLS]{"name": "clock", "arguments": {}}'),
    (MISTRAL_LIST, '[TOOL_CALLS][{"name": "clock", "arguments": 3}]'),
    (MISTRAL, '[TOOL_CALLS]weather{"city": "Bonn"}'),
    (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Bonn"'),
    (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "a", "city": "b"}'),
]


@pytest.mark.parametrize(("form", "text"), BROKEN, ids=lambda value: str(value)[-40:])
def test_a_malformed_call_is_text(form: ToolFormat, text: str):
    for pieces in ([text], list(text)):
        found = read(form, pieces)
        assert (found.calls, found.content) == ([], text)


def test_a_stop_string_at_the_closing_mark_ends_a_call():
    for form in (GLM, GLM_COMPACT, QWEN_CODER):
        for call in [("weather", {"city": "Bonn"}), ("clock", {})]:
            splitter = CallSplitter(form, SCHEMAS)
            collected = Collected()
            collected.add(splitter.feed(write(form, call).removesuffix("</tool_call>")))
            splitter.close()
            collected.add(splitter.finish())
            assert calls_of(collected) == [call]
            assert collected.content == ""


@pytest.mark.parametrize("form", [HERMES, *WRITTEN], ids=lambda form: form.name)
@pytest.mark.parametrize("behind", ["", "{", '{"', "weather\n<arg_key>", "weather[ARGS]{"])
def test_a_model_that_repeats_a_mark_for_ever_is_text_and_takes_no_time(
    form: ToolFormat, behind: str
):
    start = time.monotonic()
    pieces = [form.opening + behind] * 2000
    for text in (pieces, ["".join(pieces)]):
        assert read(form, text).content == "".join(pieces)
    assert time.monotonic() - start < 5  # a tenth of a second on a quiet machine


@pytest.mark.parametrize("form", WRITTEN, ids=lambda form: form.name)
def test_what_begins_no_functions_name_is_given_up_at_once(form: ToolFormat):
    splitter = CallSplitter(form, SCHEMAS)
    if form.spelling == "object":
        text = f"{form.opening}{form.lead}{{<"
    else:
        text = f"{form.opening}{form.lead}{form.before_name}x"
    collected = Collected()
    for letter in text:
        collected.add(splitter.feed(letter))
    assert collected.content == text


def test_arguments_can_always_be_sent():
    """Half of a surrogate pair is no UTF-8, and infinity no JSON."""
    halved, too_large = (
        read(HERMES, [f'<tool_call>{{"arguments": {{"a": {value}}}, "name": "clock"}}</tool_call>'])
        for value in ('"\\ud800"', "1e999")
    )
    halved.calls[0].arguments.encode()
    assert calls_of(halved) == [("clock", {"a": "\ud800"})]
    assert too_large.calls == []


ASK: dict[str, Any] = {
    "model": "fake",
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in SCHEMAS.items()
    ],
}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize(
    "fields", [{}, {"tool_choice": "required"}, {"parallel_tool_calls": False}]
)
def test_a_client_sees_the_same_whatever_the_form(form: ToolFormat, fields: dict[str, Any]):
    chat = ChatStyle(knows_tools=True, tool_format=form)
    client = TestClient(
        create_app(FakeGenerator(write(form, ("weather", VALUES)), chat=chat), Settings())
    )
    whole = client.post("/v1/chat/completions", json=ASK | fields)
    message = whole.json()["choices"][0]["message"]
    assert message["content"] is None
    [call] = message["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == VALUES
    assert len(call["id"]) == form.id_length or call["id"].startswith("call_")
    events = events_of(
        client.post("/v1/chat/completions", json=ASK | fields | {"stream": True}).text
    )
    deltas = [
        each for event in events for each in event["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert deltas[0]["function"]["name"] == "weather"
    streamed = "".join(each["function"]["arguments"] for each in deltas)
    assert streamed == call["function"]["arguments"]


@pytest.mark.parametrize("form", [MISTRAL, MISTRAL_LIST], ids=lambda form: form.name)
def test_one_call_at_most_is_a_language_where_no_mark_ends_a_call(form: ToolFormat):
    generator = FakeGenerator("no", chat=ChatStyle(knows_tools=True, tool_format=form))
    client = TestClient(create_app(generator, Settings()))
    client.post("/v1/chat/completions", json=ASK | {"parallel_tool_calls": False})
    constraint = generator.generations[0].params.constraint
    assert constraint is not None
    assert constraint.source.startswith("start: text calls | rest\n")


def test_what_tags_cannot_keep_is_refused_before_anything_starts():
    generator = FakeGenerator(chat=ChatStyle(knows_tools=True, tool_format=GLM))
    parameters = {"properties": {"a": {"type": "string", "format": "date"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    answer = TestClient(create_app(generator, Settings())).post(
        "/v1/chat/completions", json=ASK | {"tools": [tool], "tool_choice": "required"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert "got 'format'" in answer.json()["error"]["message"]
    assert generator.generations == []


def test_values_that_do_not_fit_are_text_and_unknown_ones_are_what_they_look_like():
    written = write(GLM, ("weather", {"days": "three", "city": "5", "more": [1], "word": "a b"}))
    [(_, arguments)] = calls_of(read(GLM, [written]))
    assert arguments == {"days": "three", "city": "5", "more": [1], "word": "a b"}


def test_pythons_spelling_of_values_is_understood():
    written = write(QWEN_CODER, ("weather", {"city": "None", "warm": "True"}))
    [(_, arguments)] = calls_of(read(QWEN_CODER, [written]))
    assert arguments == {"city": "None", "warm": True}


def test_a_call_with_mistrals_number_is_read():
    found = read(MISTRAL, ["[TOOL_CALLS]clock[CALL_ID]abc123XYZ[ARGS]{}"])
    assert calls_of(found) == [("clock", {})]
    assert new_call_id(MISTRAL.id_length).isalnum()
    assert len(new_call_id(MISTRAL.id_length)) == 9
