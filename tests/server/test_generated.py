"""Requests that a machine makes up: from our own document, and from OpenAI's request types.

Whatever comes is answered as the document says, with a 200 or a refusal, and soon. A few of each
by default; `pytest -m slow tests/server/test_generated.py` makes hundreds of new ones.
"""

from __future__ import annotations

import copy
import functools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from pydantic import TypeAdapter
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from starlette.testclient import TestClient

from diffusiongpt.server.app import create_app
from diffusiongpt.server.bounds import BOUNDS
from diffusiongpt.server.openapi import ROUTES
from diffusiongpt.server.settings import Settings

from fakes import FakeGenerator
from wire import events_of

load_all_checks()
APP = create_app(FakeGenerator(), Settings())
CHECKED = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
]
READS = ("/v1/models", "/v1/models/{model}", "/health", "/ready", "/metrics")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
# A request is answered in milliseconds; a busy machine may stop for a while.
SOON_MS = 10_000
FEW = settings(max_examples=15, derandomize=True, database=None, deadline=SOON_MS)
MANY = settings(max_examples=400, database=None, deadline=SOON_MS)
RUNS = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
CALM = {"phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


@pytest.fixture
def client() -> TestClient:
    return TestClient(APP)


def name_our_model(schema: dict[str, Any]) -> None:
    """No generator guesses it, and everything else would be a 404."""
    schema["properties"]["model"] = {"type": "string", "enum": ["fake"]}


def without_points(value: Any) -> Any:
    """1.0 is an integer in a schema and not on our wire; no client writes it that way."""
    if isinstance(value, dict):
        return {name: without_points(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_points(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def with_results(body: Any) -> Any:
    """That results follow their calls, and what arguments are, no schema can say."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return body
    messages = []
    for message in body["messages"]:
        if message["role"] == "tool":
            continue
        messages.append(message)
        for number, call in enumerate(message.get("tool_calls") or ()):
            call["id"], call["function"]["arguments"] = str(number), '{"a": 1}'
            result = {"role": "tool", "tool_call_id": str(number), "content": "x"}
            messages.append(result)
    question = {"role": "user", "content": "x"}
    return body | {"messages": messages or [question]}


@functools.cache
def our_document() -> Any:
    document = copy.deepcopy(APP.openapi())
    for route in ROUTES.values():
        name_our_model(document["components"]["schemas"][route.request.__name__])
    schema = schemathesis.openapi.from_dict(document)
    schema.app = APP
    return schema


def ask(path: str, mode: GenerationMode, run: settings) -> Counter[int]:
    """Make up requests, look at every answer, and count their statuses."""
    method = "GET" if path in READS else "POST"
    statuses: Counter[int] = Counter()

    @settings(run, **CALM)
    @given(our_document()[path][method].as_strategy(generation_mode=mode))
    def look(case: Case) -> None:
        if isinstance(case.body, dict | list):
            case.body = without_points(case.body)
        if mode is GenerationMode.POSITIVE:
            case.body = with_results(case.body)
        answer = case.call()
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKED)

    look()
    return statuses


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("path", [*ROUTES, *READS])
def test_requests_made_from_our_document_are_answered_as_it_says(path: str, run: settings):
    statuses = ask(path, GenerationMode.POSITIVE, run)
    assert statuses.keys() <= ({200, 404} if path in READS else {200, 400})
    if path in ROUTES:
        assert statuses[200] >= 0.2 * statuses.total(), statuses


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("path", ROUTES)
def test_requests_that_our_document_forbids_are_refused_as_it_says(path: str, run: settings):
    statuses = ask(path, GenerationMode.NEGATIVE, run)
    assert statuses[400] >= 0.5 * statuses.total(), statuses


# What OpenAI's types do not say: the ranges that its documentation gives.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "n": (1, 128),
    "best_of": (0, 20),
    "top_logprobs": (0, 20),
    "max_tokens": (0, 2048),
    "max_completion_tokens": (0, 2048),
    "seed": (-(2**63), 2**63 - 1),
}


@functools.cache
def openai_document() -> Any:
    """OpenAI's two main requests, as the types of its own client describe them."""
    paths = {}
    for path, params in ((CHAT, ChatParams), (TEXT, TextParams)):
        body = TypeAdapter(params).json_schema(ref_template="#/components/schemas/{model}")
        name_our_model(body)
        body["properties"]["stream"] = {"type": "boolean"}
        for name, (low, high) in RANGES.items():
            if name in body["properties"]:
                body["properties"][name] |= {"minimum": low, "maximum": high}
        content = {"application/json": {"schema": body}}
        paths[path] = (content, body.pop("$defs"))
    schema = schemathesis.openapi.from_dict(
        {
            "openapi": "3.1.0",
            "info": {"title": "two requests", "version": "1"},
            "paths": {
                path: {
                    "post": {
                        "requestBody": {"required": True, "content": content},
                        "responses": {"default": {"description": "any"}},
                    }
                }
                for path, (content, _) in paths.items()
            },
            "components": {"schemas": paths[CHAT][1] | paths[TEXT][1]},
        }
    )
    schema.app = APP
    return schema


def look_at_text(answer: Any, is_stream: bool) -> None:
    if is_stream:
        for event in events_of(answer.text):
            for choice in event["choices"]:
                # The client has one type for both, and in a stream a null where it says a reason.
                choice["finish_reason"] = choice["finish_reason"] or "stop"
            Completion.model_validate(event)
    else:
        Completion.model_validate_json(answer.text)


def look_at_chat(answer: Any, is_stream: bool) -> None:
    if is_stream:
        assert all(ChatCompletionChunk.model_validate(event) for event in events_of(answer.text))
    else:
        ChatCompletion.model_validate_json(answer.text)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("path", "look"), [(CHAT, look_at_chat), (TEXT, look_at_text)])
def test_requests_made_from_openais_types_get_its_answers_or_a_sentence(
    client: TestClient, path: str, look: Callable[[Any, bool], None], run: settings
):
    statuses: Counter[int] = Counter()

    @settings(run, max_examples=2 * run.max_examples, **CALM)
    @given(openai_document()[path]["POST"].as_strategy())
    def try_one(case: Case) -> None:
        body = without_points(case.body)
        # Not by the case itself, which stops reading a stream that is long.
        answer = client.post(path, json=body)
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 200:
            look(answer, bool(body.get("stream")))
        else:
            message = json.loads(answer.text)["error"]["message"]
            assert message
            assert "\n" not in message

    try_one()
    assert len(statuses) == 2, statuses


GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "logprobs": True},
    TEXT: {"prompt": "a"},
    "/v1/infill": {"segments": ["a", {"mask": 2}]},
    "/v1/edits": {"input": "a draft"},
}


def wrong_values(bounds: dict[str, dict[str, Any]]) -> list[Any]:
    """Values just outside of what bounds say, of every type."""
    makers: dict[tuple[str, str], Callable[[Any], Any]] = {
        ("number", "minimum"): lambda limit: limit - 0.001,
        ("number", "exclusiveMinimum"): lambda limit: limit,
        ("number", "maximum"): lambda limit: limit + 0.001,
        ("integer", "minimum"): lambda limit: limit - 1,
        ("integer", "maximum"): lambda limit: limit + 1,
        ("string", "minLength"): lambda limit: "x" * (limit - 1),
        ("string", "maxLength"): lambda limit: "x" * (limit + 1),
        ("string", "enum"): lambda known: f"un{known[0]}",
        ("string", "pattern"): lambda pattern: "a name",
        ("object", "properties"): lambda types: {"type": f"un{types['type']['const']}"},
        ("array", "minItems"): lambda limit: ["x"] * (limit - 1),
        ("array", "maxItems"): lambda limit: ["x"] * (limit + 1),
        ("array", "items"): lambda item: [""],
        ("object", "maxProperties"): lambda limit: {str(each): 1 for each in range(limit + 1)},
        ("object", "propertyNames"): lambda pattern: {"a": 1},
        ("object", "additionalProperties"): lambda value: {"1": value["maximum"] + 1},
    }
    return [
        makers[kind, rule](limit) for kind, rules in bounds.items() for rule, limit in rules.items()
    ]


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_outside_of_a_documented_bound_is_refused(client: TestClient, name: str):
    values = wrong_values(BOUNDS[name])
    homes = [path for path in GOOD if place(path, name, 0) is not None]
    assert homes
    for path in homes:
        for value in values:
            answer = client.post(path, json={"model": "fake", **(place(path, name, value) or {})})
            assert answer.status_code == 400, (path, name, value)


def place(path: str, name: str, value: Any) -> dict[str, Any] | None:
    """A good request but for one field; None where the route has no such field."""
    components = APP.openapi()["components"]["schemas"]
    if name in components[ROUTES[path].request.__name__]["properties"]:
        return {**GOOD[path], name: value}
    if name.startswith(("Tool.", "FunctionDefinition.")):
        tool = {"type": "function", "function": {"name": "f"}}
        home = tool if name.startswith("Tool.") else tool["function"]
        home[name.split(".")[1]] = value  # type: ignore[index]
        return {**GOOD[path], "tools": [tool]} if path == CHAT else None
    if name == "JsonSchemaFormat.name":
        named = {"type": "json_schema", "json_schema": {"name": value, "schema": {}}}
        return {**GOOD[path], "response_format": named}
    if name in ("regex", "grammar", "choice"):
        return {**GOOD[path], "structured_outputs": {name: value}}
    if name == "TextPart.type":
        parts = [{"type": value, "text": "hi"}]
        return {"messages": [{"role": "user", "content": parts}]} if path == CHAT else None
    if name == "mask":
        return {"segments": ["a", {"mask": value}]} if path == "/v1/infill" else None
    if name in components["DiffusionOptions"]["properties"]:
        return {**GOOD[path], "diffusion": {name: value}}
    if name in components["EditOptions"]["properties"]:
        return {**GOOD[path], "diffusion": {"edits": {name: value}}}
    return None
