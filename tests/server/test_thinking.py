"""Thinking over HTTP: apart from the answer, counted, switched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from diffusiongpt.engine.chat import PLAIN_CHAT, ChatStyle, Thinking
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.answers import ChatAnswer, ChatChunk
from diffusiongpt.server.app import create_app
from diffusiongpt.server.settings import Settings

from fakes import FakeGenerator
from live import serving_live
from tiny_models import write_modernbert
from tiny_tokenizer import CHATML, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from wire import events_of, replay

URL = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
THOUGHT = "<think>\nWhat is 🎈?\n</think>"
TEXT = f"{THOUGHT}\n\nA balloon."
SWITCHED = ChatStyle(thinking=Thinking(opening="<think>", closing="</think>", can_switch=True))
OPEN = ChatStyle(thinking=Thinking(opening="<think>", closing="</think>", opened=frozenset({None})))


def client_of(generator: FakeGenerator) -> TestClient:
    return TestClient(create_app(generator, Settings()))


def reasoning_tokens(body: dict[str, Any]) -> int:
    return body["usage"]["completion_tokens_details"]["reasoning_tokens"]


@pytest.mark.parametrize(("text", "chat"), [(TEXT, SWITCHED), (TEXT[8:], OPEN), (TEXT, OPEN)])
def test_thinking_is_apart_from_the_answer(text: str, chat: ChatStyle):
    answer = client_of(FakeGenerator(text, chat=chat)).post(URL, json=ASK | {"n": 2})
    ChatAnswer.model_validate_json(answer.text)
    body = answer.json()
    for choice in body["choices"]:
        assert choice["message"] == {
            "role": "assistant",
            "content": "A balloon.",
            "refusal": None,
            "reasoning_content": "What is 🎈?",
        }
    thought = text[: text.index("</think>") + len("</think>")]
    assert reasoning_tokens(body) == 2 * len(thought.encode())


@pytest.mark.parametrize("frames", ["off", "delta"])
def test_thinking_streams_before_the_answer(frames: str):
    ask = ASK | {"stream": True, "stream_options": {"include_usage": True}}
    ask["diffusion"] = {"frames": frames}
    events = events_of(client_of(FakeGenerator(TEXT, chat=SWITCHED)).post(URL, json=ask).text)
    for event in events:
        ChatChunk.model_validate_json(json.dumps(event))
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "What is 🎈?"
    assert "".join(delta.get("content", "") for delta in deltas) == "A balloon."
    texts = [name for delta in deltas if "role" not in delta for name in delta]
    assert texts == sorted(texts, reverse=True)  # all of "reasoning_content", then "content"
    assert reasoning_tokens(events[-1]) == len(THOUGHT.encode())
    if frames == "delta":
        assert replay(events) == TEXT


@pytest.mark.parametrize("chat", [SWITCHED, OPEN])
def test_an_answer_of_a_format_comes_without_a_thought(chat: ChatStyle):
    generator = FakeGenerator('{"a": 1}', chat=chat)
    ask = ASK | {"response_format": {"type": "json_object"}}
    body = client_of(generator).post(URL, json=ask).json()
    assert body["choices"][0]["message"]["content"] == '{"a": 1}'
    assert reasoning_tokens(body) == 0
    assert generator.enable_thinking == (False if chat is SWITCHED else None)


def test_thinking_that_never_ends_is_all_there_is():
    body = client_of(FakeGenerator("<think>What is", chat=SWITCHED)).post(URL, json=ASK).json()
    assert body["choices"][0]["message"]["content"] == ""
    assert body["choices"][0]["message"]["reasoning_content"] == "What is"
    assert reasoning_tokens(body) == len("<think>What is")


def test_an_answer_without_a_thought_is_as_it_was():
    body = client_of(FakeGenerator(" Hello <think>", chat=SWITCHED)).post(URL, json=ASK).json()
    message = {"role": "assistant", "content": " Hello <think>", "refusal": None}
    assert body["choices"][0]["message"] == message
    assert reasoning_tokens(body) == 0


@pytest.mark.parametrize(
    ("effort", "switch", "steps"),
    [
        (None, None, None),
        ("none", False, None),
        ("instant", False, 4),
        ("low", True, 8),
        ("high", True, 32),
    ],
)
def test_an_effort_switches_thinking(effort: str | None, switch: bool | None, steps: int | None):
    generator = FakeGenerator(chat=SWITCHED)
    answer = client_of(generator).post(URL, json=ASK | {"reasoning_effort": effort})
    assert answer.status_code == 200
    assert generator.enable_thinking is switch
    assert generator.generations[0].params.steps == steps


def test_no_effort_goes_with_a_budget_of_steps():
    fields = {"reasoning_effort": "none", "diffusion": {"steps": 3}}
    generator = FakeGenerator()
    assert client_of(generator).post(URL, json=ASK | fields).status_code == 200
    assert generator.generations[0].params.steps == 3


def test_thinking_that_cannot_be_switched_off_is_not():
    generator = FakeGenerator(chat=OPEN)
    answer = client_of(generator).post(URL, json=ASK | {"reasoning_effort": "none"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "reasoning_effort"
    assert "fake thinks before every answer" in answer.json()["error"]["message"]
    assert generator.generations == []
    assert client_of(generator).post(URL, json=ASK | {"reasoning_effort": "low"}).is_success


NAME = "chat_template_kwargs.enable_thinking"


@pytest.mark.parametrize(
    ("chat", "asked", "fields", "switch"),
    [
        (SWITCHED, True, {}, True),
        (SWITCHED, False, {}, False),
        (SWITCHED, None, {}, None),
        (SWITCHED, True, {"reasoning_effort": "low"}, True),
        (SWITCHED, False, {"reasoning_effort": "instant"}, False),
        (SWITCHED, False, {"response_format": {"type": "json_object"}}, False),
        (OPEN, True, {}, None),
        (PLAIN_CHAT, False, {}, None),
    ],
)
def test_a_template_is_told_to_think_or_not(
    chat: ChatStyle, asked: bool | None, fields: dict[str, Any], switch: bool | None
):
    generator = FakeGenerator(chat=chat)
    kwargs = {"chat_template_kwargs": {"enable_thinking": asked, "style": "terse"}}
    assert client_of(generator).post(URL, json=ASK | kwargs | fields).status_code == 200
    assert generator.enable_thinking is switch
    assert generator.chat_template_kwargs == {"style": "terse"}


@pytest.mark.parametrize(
    ("chat", "asked", "fields", "words"),
    [
        (SWITCHED, "yes", {}, "must be true or false, got 'yes'"),
        (SWITCHED, True, {"reasoning_effort": "none"}, "contradicts reasoning_effort=none, got T"),
        (SWITCHED, False, {"reasoning_effort": "high"}, "must be true here, because it contradi"),
        (
            SWITCHED,
            True,
            {"response_format": {"type": "json_object"}},
            "must be false here, because such an answer comes without a thought, got True",
        ),
        (OPEN, False, {}, "must be absent, because fake thinks before every answer, got False"),
        (PLAIN_CHAT, True, {}, "must be absent, because fake does not think, got True"),
    ],
)
def test_a_thought_that_cannot_be_had_is_refused(
    chat: ChatStyle, asked: object, fields: dict[str, Any], words: str
):
    generator = FakeGenerator(chat=chat)
    kwargs = {"chat_template_kwargs": {"enable_thinking": asked}}
    answer = client_of(generator).post(URL, json=ASK | kwargs | fields)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == NAME
    assert generator.generations == []


@pytest.mark.parametrize(("end", "is_open"), [("<think>\n", True), ("</think>\n", False)])
def test_any_variable_of_a_template_may_open_a_thought(end: str, is_open: bool):
    # The fake's template is the messages themselves, so the last one stands for its ending.
    generator = FakeGenerator("so </think>yes", chat=OPEN)
    ask = ASK | {"messages": [{"role": "user", "content": end}]}
    ask |= {"chat_template_kwargs": {"thinking": is_open}}
    message = client_of(generator).post(URL, json=ask).json()["choices"][0]["message"]
    assert message.get("reasoning_content", "").strip() == ("so" if is_open else "")
    assert message["content"] == ("yes" if is_open else "so </think>yes")


def test_openais_own_client_finds_the_thought():
    with serving_live(FakeGenerator(TEXT, chat=SWITCHED)) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        with client.chat.completions.stream(model="fake", messages=ASK["messages"]) as events:
            message = events.get_final_completion().choices[0].message
        assert message.content == "A balloon."
        assert message.model_extra is not None
        assert message.model_extra["reasoning_content"] == "What is 🎈?"


def test_a_real_engine_says_that_its_template_thinks(tmp_path):
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(tmp_path, vocab_size=VOCAB_SIZE, section=section)
    opened = "assistant\n<think>\n{% endif %}{# </think> #}"
    template = CHATML.replace("assistant\n{% endif %}", opened)
    write_tiny_tokenizer(tmp_path, chat_template=template)
    worker = EngineWorker(Engine.from_pretrained(tmp_path, name="fake"))
    worker.start()
    ask = ASK | {"max_tokens": 8, "seed": 1}
    with TestClient(create_app(worker, Settings())) as client:
        body = client.post(URL, json=ask).json()
        text = client.post(URL, json=ask | {"stream": True, "diffusing": True}).text
        refused = client.post(URL, json=ask | {"chat_template_kwargs": {"colour": "red"}})
        taken = client.post(URL, json=ask | {"chat_template_kwargs": {"messages": []}})
    worker.stop()
    for answer in (refused, taken):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "chat_template_kwargs"
    message = body["choices"][0]["message"]
    assert message["content"] == ""
    # It never ends the thought that its prompt opens.
    assert message["reasoning_content"] == replay(events_of(text)).lstrip()
    used = body["usage"]
    assert 0 < reasoning_tokens(body) <= used["completion_tokens"]
