"""The OpenAPI document says what the routes take and answer, and nothing else is answered."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from diffusiongpt.server.answers import ErrorEnvelope
from diffusiongpt.server.app import create_app
from diffusiongpt.server.openapi import READS, REPORTS, ROUTES
from diffusiongpt.server.settings import Settings

from fakes import FakeGenerator
from wire import events_of

ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hi"}],
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/v1/completions": {"prompt": "a", "logprobs": 2},
    "/v1/fim/completions": {"prompt": "a", "suffix": "b"},
    "/v1/infill": {"segments": ["a", {"mask": 3}], "logprobs": True, "top_logprobs": 1},
    "/v1/edits": {"input": "a draft"},
}


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(FakeGenerator("größer 🎈"), Settings()))


def test_every_generating_route_is_described(client: TestClient):
    document = client.get("/openapi.json").json()
    posts = {path for path, operations in document["paths"].items() if "post" in operations}
    assert posts == ROUTES.keys() == ASKS.keys()
    for path in posts:
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["required"] is True
        answers = operation["responses"]["200"]["content"]
        assert answers.keys() == {"application/json", "text/event-stream"}
        assert "422" not in operation["responses"]


def test_every_reference_of_the_document_leads_somewhere(client: TestClient):
    text = client.get("/openapi.json").text
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    known = json.loads(text)["components"]["schemas"].keys()
    assert references <= known
    assert not {"HTTPValidationError", "ValidationError"} & known


@pytest.mark.parametrize("path", ROUTES)
def test_whole_answers_are_as_described(client: TestClient, path: str):
    answer = client.post(path, json={"model": "fake", "n": 2, **ASKS[path]})
    ROUTES[path].answer.model_validate_json(answer.text)


@pytest.mark.parametrize("diffusion", [{}, {"frames": "delta"}, {"frames": "full"}], ids=str)
@pytest.mark.parametrize("path", ROUTES)
def test_every_event_of_a_stream_is_as_described(
    client: TestClient, path: str, diffusion: dict[str, str]
):
    ask = {"model": "fake", "n": 2, "stream": True, "diffusion": diffusion, **ASKS[path]}
    ask["stream_options"] = {"include_usage": True}
    events = events_of(client.post(path, json=ask).text)
    assert len(events) > 5
    for event in events:
        ROUTES[path].chunk.model_validate_json(json.dumps(event))


def test_frames_inside_of_deltas_are_as_described(client: TestClient):
    path = "/v1/chat/completions"
    diffusion = {"frames": "delta", "frame_location": "delta"}
    ask = {"model": "fake", "stream": True, "diffusion": diffusion, **ASKS[path]}
    for event in events_of(client.post(path, json=ask).text):
        ROUTES[path].chunk.model_validate_json(json.dumps(event))


@pytest.mark.parametrize("path", ROUTES)
def test_refusals_are_as_described(client: TestClient, path: str):
    for change in ({"model": "other"}, {"seed": "x"}, {"diffusion": {"steps": 10**9}}):
        answer = client.post(path, json={"model": "fake", **ASKS[path], **change})
        document = client.get("/openapi.json").json()["paths"][path]["post"]
        assert str(answer.status_code) in document["responses"]
        ErrorEnvelope.model_validate_json(answer.text)


def test_what_is_read_is_as_described(client: TestClient):
    for path, model in {**READS, **REPORTS}.items():
        model.model_validate_json(client.get(path.format(model="fake")).text)
