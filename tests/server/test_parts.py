"""Splitters: any chunking of a text gives the same parts; nothing is lost, nothing comes twice."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongpt.engine.chat import Thinking
from diffusiongpt.engine.tool_formats import BARE_JSON, HERMES, ToolFormat
from diffusiongpt.server.call_bodies import ObjectEnd
from diffusiongpt.server.calls import CallSplitter, new_call_id
from diffusiongpt.server.parts import (
    CallArguments,
    CallBegin,
    Chain,
    Collected,
    Content,
    Part,
    Splitter,
)
from diffusiongpt.server.thinking import ThinkingSplitter, count_tokens

THINK = Thinking(opening="<think>", closing="</think>")
NAMES: dict[str, dict[str, object]] = {"f": {}, "g": {}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}"]}}\n</tool_call>'
# Pieces that make marks, almost-marks, calls and almost-calls likely.
PIECES = (
    *("<tool_call>", "</tool_call>", "<tool_", "<think>", "</think>", "</th", "<", "call>"),
    *('{"name": "f", "arguments": {"a": 1}}', '{"name": "g", "arguments": {"b": "x{\\"y"}}'),
    *('{"arguments": {}, "name": "f"}', '{"name": "h", "arguments": {}}', '{"name": 1}'),
    *('{"name": "f", "parameters": {"c": "}"}}', '{"name": "f"', "{", "}", '"', " ", "\n", "ab"),
)
texts = st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.just(f"a {CALL} b {CALL}")


def make(kind: str, *, is_open: bool = False, is_certain: bool = False) -> Splitter:
    ids = itertools.count()
    form = BARE_JSON if kind == "bare" else HERMES
    calls = CallSplitter(form, NAMES, is_certain=is_certain, make_id=lambda: f"id{next(ids)}")
    thinking = ThinkingSplitter(THINK, is_open=is_open)
    if kind == "thinking":
        return thinking
    return Chain(thinking, calls) if kind == "both" else calls


def read(splitter: Splitter, pieces: Sequence[str]) -> list[Part]:
    return [*(part for piece in pieces for part in splitter.feed(piece)), *splitter.finish()]


def collect(parts: Sequence[Part]) -> Collected:
    collected = Collected()
    collected.add(parts)
    return collected


def cut(text: str, data: st.DataObject) -> list[str]:
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])]


@settings(max_examples=250, deadline=None)
@given(
    text=texts,
    kind=st.sampled_from(["calls", "bare", "thinking", "both"]),
    is_open=st.booleans(),
    is_certain=st.booleans(),
    data=st.data(),
)
def test_any_chunking_gives_the_same_parts(text, kind, is_open, is_certain, data):
    whole = collect(read(make(kind, is_open=is_open, is_certain=is_certain), [text]))
    pieces = cut(text, data)
    assert collect(read(make(kind, is_open=is_open, is_certain=is_certain), pieces)) == whole
    letters = collect(read(make(kind, is_open=is_open, is_certain=is_certain), list(text)))
    assert letters == whole


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def written(parts: Sequence[Part], form: ToolFormat) -> str:
    """The text that the parts were read from."""
    out, name = "", ""
    for part in parts:
        match part:
            case Content(text):
                out += text
            case CallBegin(name=called):
                name = called
            case CallArguments(fragment=arguments):
                out += f'{form.opening}{{"name": "{name}", "{form.arguments}": {arguments}}}'
    return out


def normal(text: str, form: ToolFormat) -> str:
    """Without white space, closing marks, and the order of a call's keys."""
    text = squeezed(text).replace('{"arguments":{},"name":"f"}', '{"name":"f","arguments":{}}')
    return text.replace(form.closing, "") if form.closing else text


@settings(max_examples=200, deadline=None)
@given(text=texts, kind=st.sampled_from(["calls", "bare"]))
def test_nothing_of_a_text_with_calls_is_lost_and_nothing_comes_twice(text, kind):
    form = BARE_JSON if kind == "bare" else HERMES
    assert normal(written(read(make(kind), [text]), form), form) == normal(text, form)


@settings(max_examples=200, deadline=None)
@given(text=texts, is_open=st.booleans())
def test_nothing_of_a_thought_is_lost_and_nothing_comes_twice(text, is_open):
    splitter = ThinkingSplitter(THINK, is_open=is_open)
    collected = collect(read(splitter, [text]))
    plain = squeezed(collected.reasoning + collected.content)
    begun = text.lstrip()
    thinks = is_open or begun.startswith(THINK.opening)
    thought = begun.removeprefix(THINK.opening) if thinks else ""
    reasoning, found, content = thought.partition(THINK.closing)
    assert plain == squeezed(reasoning + content if thinks else text)
    assert squeezed(collected.reasoning) == squeezed(reasoning)
    if thinks and found:
        assert text[: splitter.num_thought].endswith(THINK.closing)
        assert text[splitter.num_thought :].strip() == collected.content.strip()
    else:
        assert splitter.num_thought == (len(text) if thinks else 0)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("no call at all ", "no call at all ", []),
        (CALL, "", [("f", '{"a": [1, "}"]}')]),
        (f"Let me see.\n{CALL}\n", "Let me see.", [("f", '{"a": [1, "}"]}')]),
        (
            f'{CALL}\n<tool_call>{{"name":"g","arguments":{{}}}}</tool_call> so',
            "so",
            [("f", '{"a": [1, "}"]}'), ("g", "{}")],
        ),
        (CALL[:-12], "", [("f", '{"a": [1, "}"]}')]),
        (CALL[:20], CALL[:20], []),
        ("a <tool_call> b", "a <tool_call> b", []),
        (
            '<tool_call>{"name": "x", "arguments": {}}',
            '<tool_call>{"name": "x", "arguments": {}}',
            [],
        ),
        (
            '<tool_call>{"name": "f", "arguments": 3}',
            '<tool_call>{"name": "f", "arguments": 3}',
            [],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}',
            '<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}',
            [],
        ),
        ('<tool_call>{"arguments": {"ä": 1}, "name": "g"}', "", [("g", '{"ä": 1}')]),
        ('<tool_call>{"name": "\\u0066", "arguments": { }}', "", [("f", "{ }")]),
    ],
)
def test_calls_in_hermes_form(text, content, calls):
    collected = collect(read(make("calls"), [text]))
    assert collected.content == content
    assert [(call.name, call.arguments) for call in collected.calls] == calls


@pytest.mark.parametrize(
    ("text", "content", "num_calls"),
    [
        (' {"name": "f", "parameters": {"a": 1}}', "", 1),
        ('{"name": "f", "parameters": {"a": 1}} and so', "and so", 1),
        ('Say {"name": "f", "parameters": {}}', 'Say {"name": "f", "parameters": {}}', 0),
        ('{"answer": 42}', '{"answer": 42}', 0),
    ],
)
def test_calls_without_marks(text, content, num_calls):
    collected = collect(read(make("bare"), [text]))
    assert (collected.content, len(collected.calls)) == (content, num_calls)


def test_text_before_a_possible_mark_goes_out_and_only_that_waits():
    splitter = make("calls")
    assert splitter.feed("Hello <tool") == [Content("Hello")]
    assert splitter.feed("box> now") == [Content(" <toolbox> now")]
    assert splitter.feed("</tool_call") == [Content("</tool_call")]


def test_certain_arguments_go_out_as_they_come():
    splitter = make("calls", is_certain=True)
    parts = [splitter.feed(character) for character in CALL]
    fragments = [part.fragment for each in parts for part in each if hasattr(part, "fragment")]
    assert "".join(fragments) == '{"a": [1, "}"]}'
    assert len(fragments) == len('{"a": [1, "}"]}')
    first = next(index for index, each in enumerate(parts) if each)
    assert parts[first][0].name == "f"
    assert CALL[: first + 1].endswith('"arguments": {')


def test_uncertain_arguments_wait_for_the_whole_call():
    splitter = make("calls")
    brace = CALL.index("}}\n") + 2
    assert splitter.feed(CALL[: brace - 1]) == []
    begin, arguments = splitter.feed(CALL[brace - 1 :])
    assert (begin.index, begin.name, arguments.index) == (0, "f", 0)
    assert json.loads(arguments.fragment) == {"a": [1, "}"]}


def test_a_call_inside_of_a_thought_is_thought():
    collected = collect(read(make("both"), [f"<think>\nI could {CALL}\n</think>\n\nNo."]))
    assert collected == Collected(content="No.", reasoning=f"I could {CALL}", calls=[])


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ),
    rest=st.text(max_size=4),
)
def test_the_end_of_an_object_is_where_json_ends(value, rest):
    text = json.dumps({"v": value}, ensure_ascii=False)
    end = ObjectEnd()
    assert [end.read(text[:n]) for n in range(1, len(text))] == [None] * (len(text) - 1)
    assert end.read(text + rest) == len(text)


def test_ids_of_calls_differ_and_look_like_openais():
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", each) for each in ids)


def test_tokens_of_a_beginning_are_counted():
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    tokens = dict(reversed(list(enumerate("ä<think>b".encode()))))
    assert [count_tokens(tokens, decode, length) for length in (0, 1, 2, 9)] == [0, 1, 3, 10]
