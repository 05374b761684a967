"""Calls of tools in streams: the same as in whole answers, whatever the frames."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongpt.engine.tool_formats import HERMES
from diffusiongpt.server.calls import CallSplitter
from diffusiongpt.server.parts import Collected

from fakes import FakeGenerator
from tool_asks import (
    ASK,
    CALL,
    CLOCK_CALL,
    URL,
    assemble,
    client_of,
    post,
    stream,
)
from wire import events_of, replay


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
