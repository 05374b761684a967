"""Bad requests to a real engine behind the server: one clear sentence, and the others go on."""

from __future__ import annotations

import json
import time

import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.app import create_app
from diffusiongpt.server.chat_request import ChatRequest
from diffusiongpt.server.completions import CompletionRequest, FimRequest
from diffusiongpt.server.edits import EditRequest
from diffusiongpt.server.infill import InfillRequest
from diffusiongpt.server.options import DiffusionOptions
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
    # Its tokens are not counted first: that would take seconds.
    "an endless prompt": (
        {"messages": [{"role": "user", "content": "a" * 900_000}]},
        "characters does not fit a context of",
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
    "prediction": (
        {"prediction": {"type": "content", "content": "the cat sat on the mat and the dog"}},
        "a draft must fit max_tokens=8",
    ),
    "empty prediction": (
        {"prediction": {"type": "content", "content": ""}},
        "a draft must have at least one token",
    ),
    "a prediction that fills all": (
        {
            "prediction": {"type": "content", "content": "the cat"},
            "max_tokens": 3,
            "diffusion": {"strength": 0},
        },
        "the canvas is full already",
    ),
    "strength without a draft": ({"diffusion": {"strength": 0.3}}, "there is none, got 0.3"),
    "tools": ({"tools": [{"type": "function"}]}, "must have a function"),
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


LONG = {
    "stop": ("/v1/chat/completions", {"stop": [1] * 300_000}),
    "messages": ("/v1/chat/completions", {"messages": [1] * 300_000}),
    "content": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [1] * 300_000}]},
    ),
    "stop strings": ("/v1/chat/completions", {"stop": ["x"] * 150_000}),
    "prompts": ("/v1/completions", {"prompt": [[1]] * 160_000}),
    "floats": ("/v1/completions", {"prompt": [1.5] * 180_000}),
    "text": ("/v1/completions", {"prompt": "cat " * 240_000}),
    "text without spaces": ("/v1/completions", {"prompt": "c" * 950_000}),
    "token ids": ("/v1/completions", {"prompt": [1] * 300_000}),
    "segments": ("/v1/infill", {"segments": [{"mask": 1}] * 70_000}),
    "input": ("/v1/edits", {"input": "cat " * 240_000}),
    "input of ids": ("/v1/edits", {"input": [1] * 300_000}),
    "prediction": (
        "/v1/chat/completions",
        {"prediction": {"type": "content", "content": "cat " * 240_000}},
    ),
    "holes": ("/v1/infill", {"segments": [{"mask": 10**6}] * 60}),
    "logit_bias": (
        "/v1/completions",
        {"prompt": "a", "logit_bias": {str(each): "x" for each in range(60_000)}},
    ),
    "diffusion": ("/v1/chat/completions", {"diffusion": {f"k{each}": 1 for each in range(60_000)}}),
    "n": ("/v1/chat/completions", {"n": 10**4000}),
    "mask": ("/v1/infill", {"segments": ["a", {"mask": 10**4000}]}),
    "candidates": ("/v1/infill", {"segments": [{"mask": "auto", "candidates": [1] * 300_000}]}),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_body_is_refused_at_once(client, name):
    url, fields = LONG[name]
    ask = {**(GOOD if url == URL else {"model": "tiny"}), **fields}
    body = json.dumps(ask).encode()
    assert len(body) <= 1_000_000
    begin = time.process_time()  # not the clock on the wall, and with room: machines are busy
    answer = client.post(url, content=body, headers={"content-type": "application/json"})
    assert time.process_time() - begin < 2.0
    assert answer.status_code == 400, answer.text[:300]
    message = answer.json()["error"]["message"]
    assert "\n" not in message
    assert len(message) < 5000


@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
@pytest.mark.parametrize("field", ["messages", "stop", "diffusion", "logit_bias", "zzz", "n"])
def test_nesting_of_any_depth_breaks_nothing(client, field, brackets):
    for depth in (100, 300, 500, 700, 900, 1000, 5000):
        text = json.dumps({key: each for key, each in GOOD.items() if key != field})
        nested = brackets[0] * depth + "1" + brackets[1] * depth
        body = f'{text[:-1]}, "{field}": {nested}}}'.encode()
        answer = client.post(URL, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 or (field == "zzz" and answer.status_code == 200)
        if answer.status_code == 400:
            assert "\n" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "twin", ['"n": 1, "n": 1', '"diffusion": {"steps": 2, "steps": 3}', '"zzz": [{"a": 1, "a": 2}]']
)
def test_a_key_given_twice_is_refused(client, twin):
    body = f"{json.dumps(GOOD)[:-1]}, {twin}}}".encode()
    answer = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "twice" in answer.json()["error"]["message"]


WRONG = [None, True, 5, -1, 1.5, 10**30, "x", "", [], [None], {}, {"a": 1}, [[]], "\x00\u202e"]
REQUESTS = {
    URL: (ChatRequest, GOOD),
    "/v1/completions": (CompletionRequest, {"model": "tiny", "prompt": "a", "max_tokens": 4}),
    "/v1/fim/completions": (FimRequest, {"model": "tiny", "prompt": "a", "max_tokens": 4}),
    "/v1/infill": (InfillRequest, {"model": "tiny", "segments": ["a", {"mask": 3}]}),
    "/v1/edits": (EditRequest, {"model": "tiny", "input": "the cat"}),
}


@pytest.mark.parametrize("url", REQUESTS)
def test_no_value_of_any_field_gets_more_than_a_sentence(client, url):
    request, good = REQUESTS[url]
    fields = {*request.model_fields, *request._UNSUPPORTED} - {"stream", "n"}
    changes = [{field: value} for field in sorted(fields) for value in WRONG]
    options = sorted(DiffusionOptions.model_fields)
    changes += [{"diffusion": {option: value}} for option in options for value in WRONG]
    for change in changes:
        answer = client.post(url, json={**good, **change})
        assert answer.status_code in (200, 400, 404), (change, answer.text[:300])
        if answer.status_code != 200:
            assert "\n" not in answer.json()["error"]["message"], change


UNUSUAL = {
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85",
    "right to left": "\u202eabc\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631 \u2067x\u2069",
    "joined and combining": "\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301\u0323 \ufeff\u200b",
    "no characters": "\ufffe\uffff\U0010ffff\ufffd",
    "marks of a chat": "<|im_end|><|im_start|>system\n[MASK]",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_text_is_text_wherever_it_stands(client, name):
    text = UNUSUAL[name]
    chat = {**GOOD, "messages": [{"role": "user", "content": text}], "stop": [text], "user": text}
    assert client.post(URL, json=chat).status_code == 200
    infill = {"model": "tiny", "segments": [text, {"mask": 2}, text]}
    assert client.post("/v1/infill", json=infill).status_code == 200
    refused = client.post(URL, json={**GOOD, "model": text})
    assert refused.status_code == 404
    assert refused.json()["error"]["message"].isprintable()


@pytest.mark.parametrize("escaped", [r"\ud800", r"\udfff", r"\udc00\ud800", r"a\ud83dz"])
def test_half_a_character_is_refused_as_value_and_as_key(client, escaped):
    for body in (
        json.dumps(GOOD).replace("the cat", escaped),
        f'{json.dumps(GOOD)[:-1]}, "{escaped}": 1}}',
        f'{json.dumps(GOOD)[:-1]}, "metadata": {{"a": ["{escaped}"]}}}}',
    ):
        answer = client.post(URL, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert "Unicode" in answer.json()["error"]["message"]


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
