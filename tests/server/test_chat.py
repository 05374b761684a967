"""The chat route through ASGI, with a generator that needs no model."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine.draft import Draft
from diffusiongpt.engine.errors import EngineFailure, QueueFull
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.server.app import create_app
from diffusiongpt.server.log import configure_logging
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState

from fakes import FakeGenerator

URL = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()


@pytest.fixture
def client(generator: FakeGenerator) -> Iterator[TestClient]:
    app = create_app(generator, Settings(max_body_bytes=100_000))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_an_answer_has_openais_shape(client: TestClient):
    answer = client.post(URL, json=ASK)
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["total_tokens"] == 14
    assert body["diffusion"]["seed"] == 7
    assert answer.headers["x-diffusiongpt-seed"] == "7"


def test_a_stream_ends_with_done_and_adds_up(client: TestClient):
    answer = client.post(URL, json=ASK | {"stream": True, "diffusion": {"frames": "delta"}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert content == "Hello world"


def test_every_field_reaches_the_engine(client: TestClient, generator: FakeGenerator):
    client.post(
        URL,
        json=ASK
        | {
            "max_completion_tokens": 20,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "logit_bias": {"5": 1, "17": -100},
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "seed": 11,
            "stop": ["x", "y"],
            "diffusion": {
                "policy": "entropy_bound",
                "steps": 10,
                "block_length": 4,
                "entropy_bound": 0.5,
                "threshold": 0.8,
                "gap": 2,
                "frames": "delta",
            },
        },
    )
    params = generator.generations[0].params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (20, 0.5, 0.9, 40)
    assert (params.seed, params.stop, params.policy) == (11, ("x", "y"), "entropy_bound")
    assert (params.min_p, params.logit_bias) == (0.1, ((5, 1.0), (17, -100.0)))
    assert (params.frequency_penalty, params.presence_penalty) == (0.5, -0.5)
    assert (params.steps, params.block_length, params.entropy_bound) == (10, 4, 0.5)
    assert (params.threshold, params.gap, params.watch) == (0.8, 2, True)


@pytest.mark.parametrize(
    ("effort", "block_length", "steps"),
    [
        ("instant", None, 4),
        ("low", None, 8),
        ("medium", None, 16),
        ("high", None, 32),
        ("instant", 4, 9),
        ("instant", 1, 32),
        ("low", 0, 8),
    ],
)
def test_an_effort_is_a_share_of_the_length_in_steps(
    client: TestClient,
    generator: FakeGenerator,
    effort: str,
    block_length: int | None,
    steps: int,
):
    diffusion = {} if block_length is None else {"block_length": block_length}
    answer = client.post(URL, json=ASK | {"reasoning_effort": effort, "diffusion": diffusion})
    assert answer.status_code == 200
    assert generator.generations[0].params.steps == steps


def test_content_parts_and_the_developer_role_are_read(
    client: TestClient, generator: FakeGenerator
):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert client.post(URL, json=ASK | {"messages": messages}).status_code == 200
    assert generator.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
    ]


def test_mercurys_diffusing_gives_full_frames_and_leaves_the_content_alone(client: TestClient):
    answer = client.post(URL, json=ASK | {"stream": True, "diffusing": True})
    assert '"kind":"keyframe"' in answer.text
    chunks = [
        json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")
    ]
    content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert content == "Hello world"


BAD = [
    ({"messages": []}, "messages must hold 1 to 1024 messages, got 0"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "'wizard'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "got 'image_url'"),
    ({"messages": [{"role": "user"}]}, "content is required"),
    ({"messages": "hi"}, "messages"),
    ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    ({"max_tokens": -3}, "max_tokens must be at least 1, got -3"),
    ({"max_tokens": 10**9}, "max_tokens must be in 1..512, got 1000000000"),
    ({"max_tokens": "8"}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "contradict each other"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 3}, "temperature must be in [0, 2], got 3"),
    ({"top_p": 0}, "top_p must be in (0, 1], got 0"),
    ({"seed": 2**64}, "seed must be in"),
    ({"stop": [""]}, "each stop string must have 1 to 1024 characters"),
    ({"stop": ["x"] * 10_000}, "stop takes at most 16 strings, got 10000"),
    ({"max_tokens": 4, "diffusion": {"steps": 5}}, "steps must be in 1..max_tokens=4, got 5"),
    ({"diffusion": {"policy": "magic"}}, "policy must be one of"),
    ({"diffusion": {"stepz": 3}}, "diffusion has no key 'stepz'; it takes policy, steps"),
    ({"diffusion": {"frames": "all"}}, "'all'"),
    ({"diffusion": {"frame_interval": 0}}, "frame_interval"),
    ({"diffusion": {"edits": "much"}}, "diffusion.edits"),
    ({"diffusion": {"cache": "magic"}}, "diffusion.cache"),
    (
        {"reasoning_effort": "low", "diffusion": {"policy": "first_hitting"}},
        "reasoning_effort must be absent",
    ),
    ({"diffusion": {"edits": {"threshold": 0.5, "speed": 1}}}, "speed"),
    ({"diffusion": "fast"}, "diffusion"),
    ({"n": 0}, "n must be in 1..128, got 0"),
    ({"n": 10**30}, f"n must be in 1..128, got {10**30}"),
    ({"n": True}, "n: input should be a valid integer, got True"),
    ({"logprobs": 5}, "logprobs: input should be a valid boolean, got 5"),
    ({"top_logprobs": 3}, "top_logprobs needs logprobs to be true, got top_logprobs=3"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be in 0..20, got 21"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs must be in 0..20, got -1"),
    ({"logit_bias": {"cat": 1}}, "logit_bias must have token ids for keys, got 'cat'"),
    ({"logit_bias": {"-5": 1}}, "logit_bias must have token ids for keys, got '-5'"),
    ({"logit_bias": {"5": 101}}, "logit_bias must be in [-100, 100], got 101"),
    ({"logit_bias": {"5": "1"}}, "got '1'"),
    ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias must name each token once"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "at most 1024 tokens, got 1025"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"presence_penalty": 2.5}, "presence_penalty must be in [-2, 2], got 2.5"),
    ({"frequency_penalty": "a"}, "frequency_penalty: input should be a valid number, got 'a'"),
    ({"min_p": 1.5}, "min_p must be in [0, 1], got 1.5"),
    ({"reasoning_effort": "minimal"}, "'instant', 'low', 'medium' or 'high', got 'minimal'"),
    (
        {"reasoning_effort": "low", "diffusion": {"steps": 3}},
        "reasoning_effort=low and diffusion.steps=3 contradict each other; give one",
    ),
    ({"prediction": "x"}, "prediction"),
    ({"prediction": {"type": "contents", "content": "x"}}, "prediction.type"),
    ({"prediction": {"type": "content"}}, "prediction.content is required"),
    ({"prediction": {"type": "content", "content": ""}}, "at least one token, got none"),
    (
        {"prediction": {"type": "content", "content": "x"}, "diffusion": {"strength": -1}},
        "strength must be a number in [0, 1], got -1",
    ),
    (
        {"prediction": {"type": "content", "content": "x"}, "logprobs": True},
        "logprobs cannot come with prediction",
    ),
    ({"model": 5}, "model"),
]


@pytest.mark.parametrize(
    "content", ["a bc", [{"type": "text", "text": part} for part in ("a ", "bc")]]
)
def test_a_prediction_is_the_draft_of_the_answer(
    client: TestClient, generator: FakeGenerator, content: Any
):
    ask = ASK | {"prediction": {"type": "content", "content": content}, "max_tokens": 16}
    assert client.post(URL, json=ask).status_code == 200
    assert client.post(URL, json=ask | {"diffusion": {"strength": 0, "pick": "random"}}).is_success
    assert client.post(URL, json=ASK | {"prediction": None}).status_code == 200
    drafts = [each.params.draft for each in generator.generations]
    assert drafts == [Draft("a bc"), Draft("a bc", 0.0, "random"), None]
    assert generator.generations[0].params.max_tokens == 16


@pytest.mark.parametrize(("fields", "sentence"), BAD, ids=lambda value: str(value)[:50])
def test_bad_input_is_refused_in_one_sentence(
    client: TestClient, generator: FakeGenerator, fields: dict[str, Any], sentence: str
):
    answer = client.post(URL, json=ASK | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert sentence in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert generator.generations == []
    assert client.post(URL, json=ASK).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[]", 400),
        (b"\xff\xfe{}", 400),
        (b'{"model": NaN}', 400),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b"[" * 50_000, 400),
        (b'{"model": 1' + b"0" * 5000 + b"}", 400),
        (b" " * 200_000, 413),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_body_that_is_not_a_json_object_is_refused(client: TestClient, body: bytes, status: int):
    answer = client.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]["message"]


def test_a_body_of_ten_megabytes_is_refused_unread(client: TestClient):
    answer = client.post(
        URL, content=b" " * 10_000_000, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_another_content_type_is_refused(client: TestClient):
    answer = client.post(URL, content=json.dumps(ASK), headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_what_openai_allows_and_changes_nothing_is_accepted(client: TestClient):
    harmless = {"n": 1, "logprobs": False, "user": "u", "metadata": {"a": "b"}, "tools": []}
    answer = client.post(URL, json=ASK | harmless | {"store": False, "presence_penalty": 0})
    assert answer.status_code == 200
    assert "x-diffusiongpt-ignored" not in answer.headers


def test_unknown_fields_are_named_in_a_header(client: TestClient):
    answer = client.post(URL, json=ASK | {"best_effort": 1, "zzz": 2})
    assert answer.status_code == 200
    assert answer.headers["x-diffusiongpt-ignored"] == "best_effort,zzz"


def test_a_prompt_longer_than_the_context_is_a_400_with_its_code(client: TestClient):
    messages = [{"role": "user", "content": "x" * 100}]
    answer = client.post(URL, json=ASK | {"messages": messages})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == "messages"


def test_another_model_is_a_404_that_names_the_one_that_is_served(client: TestClient):
    answer = client.post(URL, json=ASK | {"model": "gpt-4"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "'fake' is" in answer.json()["error"]["message"]


def test_a_full_queue_is_a_429_that_says_when_to_retry(
    client: TestClient, generator: FakeGenerator
):
    generator.error = QueueFull("9 requests are waiting already")
    answer = client.post(URL, json=ASK)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["retry-after-ms"] == "2000"


def test_an_engine_that_cannot_serve_is_a_503_and_unhealthy(
    client: TestClient, generator: FakeGenerator
):
    generator.error = EngineFailure("3 steps in a row failed")
    generator.failure = "3 steps in a row failed"
    assert client.post(URL, json=ASK).status_code == 503
    health = client.get("/health")
    assert health.status_code == 503
    assert health.json()["reason"] == "3 steps in a row failed"


def test_an_unforeseen_error_is_a_500_without_a_traceback(
    client: TestClient, generator: FakeGenerator
):
    generator.error = ZeroDivisionError("secret")
    answer = client.post(URL, json=ASK)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"


def failing_frames() -> list[Frame]:
    common: dict[str, Any] = {
        "request_id": "r",
        "steps": 4,
        "block": 0,
        "block_length": 4,
        "length": 4,
    }
    return [
        Frame(step=0, masked=4, **common),
        Frame(step=1, masked=3, content="a", **common),
        Frame(
            step=1, masked=3, finish_reason=FinishReason.ERROR, error="the engine failed", **common
        ),
    ]


def test_an_error_in_mid_stream_is_an_event_and_no_done(
    client: TestClient, generator: FakeGenerator
):
    generator.frames = failing_frames()
    answer = client.post(URL, json=ASK | {"stream": True})
    events = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["message"] == "the engine failed"
    assert "[DONE]" not in answer.text


def test_an_error_before_the_answer_is_a_500(client: TestClient, generator: FakeGenerator):
    generator.frames = failing_frames()
    assert client.post(URL, json=ASK).status_code == 500


def test_a_stopping_server_takes_no_request():
    state = ServerState()
    client = TestClient(create_app(FakeGenerator(), Settings(), state))
    assert client.get("/health").json()["status"] == "ok"
    state.is_draining = True
    assert client.post(URL, json=ASK).status_code == 503
    assert client.get("/ready").status_code == 503


def test_models_are_listed_and_retrieved(client: TestClient):
    listing = client.get("/v1/models").json()
    assert [model["id"] for model in listing["data"]] == ["fake"]
    assert (
        client.get("/v1/models/fake").json()["diffusion"]["defaults"]["policy"] == "entropy_bound"
    )
    assert client.get("/v1/models/other").status_code == 404


def test_requests_have_a_name(client: TestClient):
    assert client.get("/health").headers["x-request-id"].startswith("req_")
    given = client.get("/health", headers={"x-request-id": "mine"})
    assert given.headers["x-request-id"] == "mine"
    too_long = client.get("/health", headers={"x-request-id": "m" * 500})
    assert too_long.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", URL, 405), ("GET", "/nope", 404)])
def test_unknown_routes_and_methods_answer_in_the_same_shape(
    client: TestClient, method: str, path: str, status: int
):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_log_that_nobody_can_read_fails_no_request(
    client: TestClient, generator: FakeGenerator, monkeypatch: pytest.MonkeyPatch
):
    configure_logging("info")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    generator.error = ZeroDivisionError("secret")
    answer = client.post(URL, json=ASK)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
