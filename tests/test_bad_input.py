"""Bad requests to a real engine behind the server: one clear sentence, and the others go on."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.app import create_app
from diffusiongpt.server.settings import Settings

from tiny_models import CONTEXT_LENGTH, write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

URL = "/v1/chat/completions"
GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 8}
SECTION = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [0, 2, MASK]}

BAD = {
    "empty messages": ({"messages": []}, "messages must hold 1 to 1024"),
    "no messages": ({"messages": None}, "messages"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "hi"}]}, "wizard"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "image_url",
    ),
    "a long prompt": (
        {"messages": [{"role": "user", "content": "cat " * 5000}]},
        "context",
    ),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    "max_tokens -1": ({"max_tokens": -1}, "max_tokens must be at least 1, got -1"),
    "max_tokens huge": ({"max_tokens": 10**12}, "1000000000000"),
    "more steps than tokens": ({"diffusion": {"steps": 9}}, "steps must be in 1..max_tokens=8"),
    "unknown policy": ({"diffusion": {"policy": "best"}}, "policy must be one of"),
    "unknown key": ({"diffusion": {"polcy": "random"}}, "polcy"),
    "block length": ({"diffusion": {"block_length": -1}}, "block_length"),
    "temperature": ({"temperature": 2.5}, "temperature must be in [0, 2], got 2.5"),
    "seed": ({"seed": 2**70}, "seed"),
    "empty stop": ({"stop": ""}, "stop"),
    "wrong type": ({"max_tokens": "8"}, "max_tokens"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=4, section=SECTION)
    write_tiny_tokenizer(folder)
    worker = EngineWorker(Engine.from_pretrained(folder, name="tiny"))
    worker.start()
    with TestClient(create_app(worker, Settings()), raise_server_exceptions=False) as client:
        yield client
    worker.stop()


def answers(client):
    return client.post(URL, json=GOOD).status_code == 200


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_one_sentence_and_the_next_one_is_served(client, name, stream):
    change, words = BAD[name]
    answer = client.post(URL, json={**GOOD, "stream": stream, **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    assert error["type"] == "invalid_request_error"
    assert answers(client)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b'{"model": NaN}', 400),
        (b"[" * 100_000, 400),
        (b'{"model": "' + b"x" * 10_000_000 + b'"}', 413),
    ],
    ids=["open", "empty", "list", "bytes", "nan", "nested", "10 MB"],
)
def test_a_broken_body_is_refused_and_the_next_one_is_served(client, body, status):
    answer = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert json.loads(answer.text)["error"]["message"]
    assert answers(client)


def test_another_model_is_a_404_that_names_ours(client):
    answer = client.post(URL, json={**GOOD, "model": "gpt-5"})
    assert answer.status_code == 404
    assert "tiny" in answer.json()["error"]["message"]


def test_the_longest_prompt_that_fits_is_served(client):
    content = "a" * (CONTEXT_LENGTH // 2)
    answer = client.post(URL, json={**GOOD, "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 200
