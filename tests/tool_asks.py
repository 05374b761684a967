"""Requests with tools, and what a client puts together of their answers."""

from __future__ import annotations

import json
from typing import Any

from starlette.testclient import TestClient

from diffusiongpt.server.answers import ChatAnswer, ChatChunk
from diffusiongpt.server.app import create_app
from diffusiongpt.server.settings import Settings

from fakes import FakeGenerator
from wire import events_of

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
