"""`response_format` and `structured_outputs`: what reaches the engine, what is refused, and what
comes back from a real one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine import Engine
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.app import create_app
from diffusiongpt.server.settings import Settings

from fakes import FakeGenerator
from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "grün", "青"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}
OBJECT = {"type": "json_object"}
STRICT = {
    "type": "json_schema",
    "json_schema": {"name": "a_thing", "schema": SCHEMA, "strict": True},
}


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()


@pytest.fixture
def fake(generator: FakeGenerator) -> TestClient:
    return TestClient(create_app(generator, Settings()))


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "json_object"}}, Constraint(kind="json_object")),
        (
            {"response_format": STRICT},
            Constraint(kind="json_schema", source=json.dumps(SCHEMA)),
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            Constraint(kind="json_schema", source=json.dumps(SCHEMA)),
        ),
        (
            {"structured_outputs": {"json": "{}"}, "response_format": {"type": "text"}},
            Constraint(kind="json_schema", source="{}"),
        ),
        ({"structured_outputs": {"json_object": True}}, Constraint(kind="json_object")),
        ({"structured_outputs": {"regex": "a+"}}, Constraint(kind="regex", source="a+")),
        (
            {"structured_outputs": {"choice": ["yes", "no"]}},
            Constraint(kind="choice", source='["yes", "no"]'),
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            Constraint(kind="grammar", source='start: "a"'),
        ),
    ],
)
def test_a_format_reaches_the_engine_from_every_route(
    fake: TestClient, generator: FakeGenerator, fields: dict[str, Any], constraint: Constraint
):
    asks = {CHAT: HELLO, TEXT: {"prompt": "a"}, "/v1/fim/completions": {"prompt": "a"}}
    asks["/v1/infill"] = {"segments": ["a", {"mask": 4}]}
    for route, ask in asks.items():
        assert fake.post(route, json={"model": "fake", **ask, **fields}).status_code == 200
    assert [each.params.constraint for each in generator.generations] == [constraint] * len(asks)
    assert generator.compiled == [constraint] * (len(asks) if constraint else 0)


def test_every_hole_may_have_its_own_format(fake: TestClient, generator: FakeGenerator):
    own = {"mask": 4, "structured_outputs": {"choice": ["x", "y"]}}
    ask = {"model": "fake", "segments": ["a", own, "b", {"mask": 3}]}
    ask["structured_outputs"] = {"regex": "z+"}
    assert fake.post("/v1/infill", json=ask).status_code == 200
    choice = Constraint(kind="choice", source='["x", "y"]')
    assert generator.compiled == [Constraint(kind="regex", source="z+"), choice]
    own["structured_outputs"] = {"choice": []}
    del ask["structured_outputs"]
    refused = fake.post("/v1/infill", json=ask)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "segments"


def with_schema(**fields: Any) -> dict[str, Any]:
    schema = {"name": "x", "schema": {}, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'"),
        ({"response_format": "json_object"}, "response_format", "got 'json_object'"),
        ({"response_format": {}}, "response_format.type", "is required"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format", "unknown key 'x'"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format",
            "json_schema must be given",
        ),
        (
            {"response_format": STRICT | {"type": "json_object"}},
            "response_format",
            "only then, got type='json_object'",
        ),
        (with_schema(name=""), "response_format.json_schema.name", "1 to 64 letters"),
        (with_schema(name="a b"), "response_format.json_schema.name", "got 'a b'"),
        (with_schema(schema=5), "response_format.json_schema.schema", "got 5"),
        (with_schema(strict="yes"), "response_format.json_schema.strict", "got 'yes'"),
        ({"structured_outputs": {}}, "structured_outputs", "got none"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs",
            "exactly one of json, json_object, regex, choice and grammar, got regex, choice",
        ),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object", "False"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "'structural_tag'"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs", "at least 1 character"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "1 to 1024 texts"),
        ({"structured_outputs": {"choice": [5]}}, "structured_outputs.choice.0", "got 5"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs", "can be read"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "contradict each other",
        ),
        ({"guided_regex": "a"}, "guided_regex", "structured_outputs.regex is its name here"),
        ({"guided_decoding_backend": "x"}, "guided_decoding_backend", "nothing can be chosen"),
    ],
)
def test_a_format_that_is_none_is_refused_by_name(
    fake: TestClient, generator: FakeGenerator, fields: dict[str, Any], param: str, sentence: str
):
    answer = fake.post(CHAT, json={"model": "fake", **HELLO, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert sentence in error["message"]
    assert error["param"] == param
    assert generator.generations == []


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("model")
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=3, section=section)
    write_tiny_tokenizer(folder)
    worker = EngineWorker(Engine.from_pretrained(folder, name="tiny", dtype="float32"))
    worker.start()
    yield TestClient(create_app(worker, Settings()))
    worker.stop()


def ask(client: TestClient, route: str = CHAT, **fields: Any) -> Any:
    prompt = HELLO if route == CHAT else {"prompt": "the cat"}
    sampling = {"max_tokens": 48, "seed": 5, "temperature": 1}
    return client.post(route, json={"model": "tiny", **prompt, **sampling, **fields})


def test_every_choice_satisfies_the_schema(client: TestClient):
    body = ask(client, n=3, logprobs=True, response_format=STRICT).json()
    for choice in body["choices"]:
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
        assert choice["finish_reason"] == "stop"
        told = bytes(b for each in choice["logprobs"]["content"] for b in each["bytes"] or ())
        assert told.decode() == choice["message"]["content"]
    again = ask(client, seed=6, response_format=STRICT).json()  # choice i has the seed plus i
    assert again["choices"][0]["message"] == body["choices"][1]["message"]


def test_a_stream_settles_the_same_text(client: TestClient):
    whole = ask(client, response_format=STRICT).json()["choices"][0]["message"]["content"]
    for frames in ("off", "full"):
        fields = {"stream": True, "diffusion": {"frames": frames}}
        text = ask(client, response_format=STRICT, **fields).text
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        choices = [each["choices"][0] for each in chunks]
        assert "".join(each["delta"].get("content", "") for each in choices) == whole
        assert choices[-1]["finish_reason"] == "stop"


def test_the_other_languages_over_the_older_route(client: TestClient):
    def text(**outputs: Any) -> str:
        return ask(client, TEXT, structured_outputs=outputs).json()["choices"][0]["text"]

    assert text(choice=["ja", "nein", "vielleicht"]) in ("ja", "nein", "vielleicht")
    assert text(regex="[ab]{3}x").endswith("x")
    assert text(grammar='start: "<" /[0-9]{2}/ ">"')[0::3] == "<>"
    assert isinstance(json.loads(text(json_object=True)), dict)


def test_every_hole_of_an_infill_may_have_a_schema(client: TestClient):
    age = {"type": "integer", "minimum": 0, "maximum": 120}
    tree = {"type": "array", "items": {"$ref": "#"}}
    holes = [{"mask": 40}, {"mask": 4, "structured_outputs": {"json": age}}]
    segments = ["the cat ", holes[0], " is ", holes[1]]
    fields = {"model": "tiny", "segments": segments, "response_format": STRICT, "seed": 3}
    choice = client.post("/v1/infill", json=fields).json()["choices"][0]
    for fill, schema in zip(choice["fills"], (SCHEMA, age), strict=True):
        jsonschema.validate(json.loads(fill), schema)
    holes[1]["structured_outputs"] = {"json": tree}
    refused = client.post("/v1/infill", json=fields)
    assert refused.status_code == 400
    assert "because # refers to itself" in refused.json()["error"]["message"]


def test_a_scaffold_has_the_keys_in_its_first_frame(client: TestClient):
    fields = {"response_format": STRICT, "logprobs": True}
    body = ask(client, diffusion={"scaffold": 5}, **fields).json()
    whole = body["choices"][0]["message"]["content"]
    jsonschema.validate(json.loads(whole), SCHEMA)
    told = body["choices"][0]["logprobs"]["content"]
    assert 2 <= len(told) <= 2 * 5
    assert body["usage"]["completion_tokens"] > len(told)
    for frames in ("off", "full"):
        options = {"frames": frames, "scaffold": 5}
        text = ask(client, stream=True, diffusion=options, **fields).text
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        content = [each["choices"][0]["delta"].get("content", "") for each in chunks]
        assert "".join(content) == whole
        assert next(each for each in content if each).startswith('{"colour":')
    refused = ask(client, structured_outputs={"regex": "a"}, diffusion={"scaffold": 5}).json()
    assert refused["error"]["param"] == "diffusion.scaffold"
    assert "scaffold goes with a json_schema, got a regex" in refused["error"]["message"]


NESTED: dict[str, Any] = {}
for _ in range(150):
    NESTED = {"type": "array", "items": NESTED}


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        (with_schema(schema={"enum": []}), "response_format", "Unsatisfiable"),
        (with_schema(schema=NESTED), "response_format", "recursion limit"),
        (with_schema(schema={"minLength": 10**400}), "response_format", "cannot be kept"),
        (with_schema(schema={"type": "string", "minLength": -1}), "response_format", "cannot"),
        (with_schema(schema={"type": 5}), "response_format", "cannot be kept"),
        (with_schema(schema={"$ref": "#/$defs/none"}), "response_format", "cannot be kept"),
        ({"structured_outputs": {"regex": "(" * 900}}, "structured_outputs", "cannot be kept"),
        ({"response_format": STRICT, "max_tokens": 3}, "max_tokens", "must be at least"),
        ({"response_format": STRICT, "stop": "}"}, "stop", "would cut the text"),
        (
            {"response_format": OBJECT, "diffusion": {"policy": "remdm", "steps": 9}},
            "diffusion.policy",
            "this json_object is written from left to right, where what is committed stays, and "
            "policy='remdm'",
        ),
    ],
)
def test_what_cannot_be_kept_is_a_400_soon(
    client: TestClient, fields: dict[str, Any], param: str, sentence: str
):
    began = time.monotonic()
    answer = ask(client, **fields)
    assert time.monotonic() - began < 3.0
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param
