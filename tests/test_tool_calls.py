"""A real engine that must call: whatever the model is like, its calls are valid."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from diffusiongpt.engine.engine import BUNDLED_MODEL, Engine
from diffusiongpt.engine.tool_formats import (
    GLM,
    GLM_COMPACT,
    HERMES,
    MISTRAL,
    MISTRAL_LIST,
    QWEN_CODER,
)
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.app import create_app
from diffusiongpt.server.calls import CallSplitter
from diffusiongpt.server.parts import Collected
from diffusiongpt.server.settings import Settings

from call_texts import write
from tiny_models import edit_config, write_modernbert
from tiny_tokenizer import CHATML, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from wire import events_of, replay

URL = "/v1/chat/completions"
SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [0, 2, MASK],
}
SCHEMAS = {
    "pick": {
        "type": "object",
        "properties": {"one": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
        "required": ["one"],
    },
    "say": {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 9}},
        "required": ["text"],
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
NAMED = {"type": "function", "function": {"name": "say"}}


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """One client for each kind of model, tiny and random, and the bundled one."""
    folders = {"bundled": BUNDLED_MODEL}
    for name, block_length in (("wide", None), ("blocks", 4)):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        write_modernbert(
            folder, vocab_size=VOCAB_SIZE, seed=4, section=SECTION, block_length=block_length
        )
        edit_config(folder, max_position_embeddings=1024)
        write_tiny_tokenizer(folder)
    workers = {
        name: EngineWorker(Engine.from_pretrained(folder, name="m"))
        for name, folder in folders.items()
    }
    for worker in workers.values():
        worker.start()
    yield {name: TestClient(create_app(each, Settings())) for name, each in workers.items()}
    for worker in workers.values():
        worker.stop()


@pytest.fixture(scope="module")
def make_client(tmp_path_factory):
    """A tiny, random model whose template teaches a form by an example."""
    workers = []

    def make(form):
        folder = tmp_path_factory.mktemp(form.name)
        write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=4, section=SECTION, block_length=4)
        edit_config(folder, max_position_embeddings=1024)
        write_tiny_tokenizer(folder)
        example = f"{{% if tools %}}{write(form, ('f', {'a': 1}))}{{% endif %}}"
        (folder / "chat_template.jinja").write_text(CHATML + example)
        workers.append(EngineWorker(Engine.from_pretrained(folder, name="m")))
        workers[-1].start()
        return TestClient(create_app(workers[-1], Settings()))

    yield make
    for worker in workers:
        worker.stop()


@pytest.mark.parametrize(
    "form", [GLM, GLM_COMPACT, QWEN_CODER, MISTRAL_LIST, MISTRAL], ids=lambda form: form.name
)
def test_calls_are_valid_in_every_form(make_client, form):
    client = make_client(form)
    assert client.get("/v1/models").json()["data"][0]["diffusion"]["tools"] == form.name
    for seed, choice in enumerate(["required", NAMED]):
        ask = {**ASK, "tool_choice": choice, "max_tokens": 160, "seed": seed}
        answer = client.post(URL, json=ask)
        assert answer.status_code == 200, answer.text
        whole = answer.json()["choices"][0]
        check(whole)
        events = events_of(client.post(URL, json=ask | {"stream": True}).text)
        deltas = [call for e in events for call in e["choices"][0]["delta"].get("tool_calls", ())]
        for index, function in enumerate(functions_of(whole)):
            fragments = [d["function"]["arguments"] for d in deltas if d["index"] == index]
            assert "".join(fragments) == function["arguments"]


def check(choice):
    assert choice["finish_reason"] == "tool_calls"
    for call in choice["message"]["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, SCHEMAS[call["function"]["name"]])


def functions_of(choice):
    return [call["function"] for call in choice["message"].get("tool_calls", ())]


@settings(max_examples=6, deadline=None)
@given(
    kind=st.sampled_from(["wide", "blocks", "bundled"]),
    choice=st.sampled_from(["required", NAMED]),
    seed=st.integers(0, 99),
    policy=st.sampled_from(["ancestral", "entropy_bound", "confidence", "threshold"]),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_what_must_call_calls_validly_whole_and_streamed(
    clients, kind, choice, seed, policy, temperature
):
    ask = {**ASK, "tool_choice": choice, "max_tokens": 96, "seed": seed, "n": 2}
    ask |= {"temperature": temperature, "diffusion": {"policy": policy}}
    answer = clients[kind].post(URL, json=ask)
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    ask |= {"stream": True, "diffusion": {"policy": policy, "frames": "delta"}}
    events = events_of(clients[kind].post(URL, json=ask).text)
    for whole in choices:
        check(whole)
        assert whole["message"]["content"] is None
        if choice == NAMED:
            assert [each["name"] for each in functions_of(whole)] == ["say"]
        own = [event for event in events if event["choices"][0]["index"] == whole["index"]]
        splitter = CallSplitter(HERMES, SCHEMAS)
        collected = Collected()
        collected.add(splitter.feed(replay(own)) + splitter.finish())
        read = [{"name": each.name, "arguments": each.arguments} for each in collected.calls]
        assert read == functions_of(whole)
        deltas = [
            call for each in own for call in each["choices"][0]["delta"].get("tool_calls", ())
        ]
        for index, function in enumerate(functions_of(whole)):
            fragments = [d["function"]["arguments"] for d in deltas if d["index"] == index]
            assert "".join(fragments) == function["arguments"]


def test_arguments_stream_while_they_settle(clients):
    ask = {**ASK, "tool_choice": NAMED, "max_tokens": 96, "seed": 1, "stream": True}
    ask["diffusion"] = {"policy": "ancestral"}
    events = events_of(clients["blocks"].post(URL, json=ask).text)
    deltas = [call for each in events for call in each["choices"][0]["delta"].get("tool_calls", ())]
    assert deltas[0]["function"] == {"name": "say", "arguments": ""}
    assert len([each for each in deltas if each["function"]["arguments"]]) > 2


@pytest.mark.parametrize("kind", ["wide", "blocks"])
def test_strict_functions_leave_the_text_free(clients, kind):
    ask = {**ASK, "max_tokens": 48, "seed": 2, "diffusion": {"policy": "ancestral"}}
    answer = clients[kind].post(URL, json=ask)
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    assert len(message["content"]) > 10
    assert "tool_calls" not in message


@pytest.mark.parametrize(
    ("fields", "sentence", "param"),
    [
        ({"max_tokens": 3}, "max_tokens", "max_tokens"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/no"}}}
                ]
            },
            "grammar",
            "tools",
        ),
    ],
)
def test_calls_that_cannot_be_written_are_refused_before_anything_starts(
    clients, fields, sentence, param
):
    ask = {**ASK, "tool_choice": "required", **fields}
    answer = clients["blocks"].post(URL, json=ask)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param
