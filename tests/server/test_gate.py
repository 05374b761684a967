"""What all routes have in common: keys, loading and draining, fairness, origins, logs, models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from diffusiongpt.server.app import create_app
from diffusiongpt.server.log import configure_logging
from diffusiongpt.server.models import Models
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState

from fakes import FakeGenerator

URL = "/v1/chat/completions"
SECRET = "very-secret"
ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hush hush"}]}


def client_of(
    *generators: FakeGenerator, state: ServerState | None = None, **settings: Any
) -> TestClient:
    models = Models(generators or [FakeGenerator()])
    return TestClient(
        create_app(models, Settings(**settings), state), raise_server_exceptions=False
    )


def closed_routes(client: TestClient) -> Sequence[tuple[str, str]]:
    """Every route of the application but those that are open on purpose."""
    app: Any = client.app
    paths = app.openapi()["paths"]
    routes = [(method.upper(), path) for path, each in paths.items() for method in each]
    return [route for route in routes if route[1] not in ("/", "/health", "/ready")]


def test_every_route_but_the_open_ones_needs_a_key():
    client = client_of(api_keys=[SECRET, "other"])
    routes = [*closed_routes(client), ("GET", "/openapi.json"), ("GET", "/nowhere")]
    assert ("POST", URL) in routes
    assert ("GET", "/metrics") in routes
    for method, path in routes:
        answer = client.request(method, path, json=ASK if method == "POST" else None)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "x-request-id" in answer.headers
    for path in ("/health", "/ready"):
        assert client.get(path).status_code == 200
    # What a browser loads before anybody can give it a key: open, whether it is there or not.
    for path in ("/", "/static/nothing.js"):
        assert client.get(path).status_code != 401
    for path in ("/static", "/health/", "/HEALTH", "/healthy"):
        assert client.get(path).status_code == 401, path


def test_each_key_opens_and_a_wrong_one_does_not():
    client = client_of(api_keys=[SECRET, "other"])
    for key, status in ((SECRET, 200), ("other", 200), (SECRET + "x", 401), (SECRET[:-1], 401)):
        answer = client.post(URL, json=ASK, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_while_loading_the_api_says_when_to_come_back():
    state = ServerState(is_loading=True)
    models = Models()
    client = TestClient(create_app(models, Settings(), state))
    for method, path in closed_routes(client):
        if path.startswith("/v1/"):
            answer = client.request(method, path, json=ASK if method == "POST" else None)
            assert answer.status_code == 503, path
            assert int(answer.headers["retry-after"]) > 0
            assert "loaded" in answer.json()["error"]["message"]
    for path in ("/health", "/ready"):
        assert client.get(path).status_code == 503
        assert client.get(path).json()["status"] == "loading"
    models.add(FakeGenerator())
    state.is_loading = False
    assert client.get("/ready").json()["models"] == ["fake"]
    assert client.post(URL, json=ASK).status_code == 200


def test_a_server_that_drains_is_well_but_not_ready():
    state = ServerState()
    client = client_of(state=state)
    state.is_draining = True
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    assert client.get("/ready").json()["status"] == "draining"
    assert client.post(URL, json=ASK).status_code == 503


def test_one_key_cannot_take_all_and_others_are_served():
    app = create_app(
        FakeGenerator(pause=0.05),
        Settings(api_keys=("greedy", "modest"), max_concurrent_per_key=2),
    )

    async def ask_all() -> tuple[list[httpx.Response], httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def ask(key: str) -> httpx.Response:
                return await client.post(URL, json=ASK, headers={"authorization": f"Bearer {key}"})

            first = asyncio.gather(*(ask("greedy") for _ in range(5)))
            await asyncio.sleep(0.1)
            other = await ask("modest")
            greedy = await first
            return greedy, other, await ask("greedy")

    greedy, other, afterwards = asyncio.run(ask_all())
    refused = [answer for answer in greedy if answer.status_code == 429]
    assert sorted(answer.status_code for answer in greedy) == [200, 200, 429, 429, 429]
    assert refused[0].json()["error"]["code"] == "too_many_concurrent_requests"
    assert int(refused[0].headers["retry-after"]) > 0
    assert other.status_code == afterwards.status_code == 200


def test_pages_of_other_origins_may_call_only_if_asked_for():
    ask = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed = client_of()
    assert "access-control-allow-origin" not in closed.options(URL, headers=ask).headers
    assert "access-control-allow-origin" not in closed.get("/health", headers=ask).headers
    opened = client_of(cors_origins=["https://a.example"], api_keys=[SECRET])
    preflight = opened.options(URL, headers=ask | {"access-control-request-headers": "x"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    refused = opened.post(URL, json=ASK, headers=ask)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    stranger = opened.get("/health", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in stranger.headers


def test_the_log_has_neither_keys_nor_prompts_unless_prompts_are_asked_for(
    capsys: pytest.CaptureFixture[str],
):
    configure_logging("debug")
    for log_prompts in (False, True):
        client = client_of(api_keys=[SECRET], log_prompts=log_prompts)
        for key in (SECRET, "wrong-key"):
            client.post(URL, json=ASK, headers={"authorization": f"Bearer {key}"})
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert [line["status"] for line in lines] == [200, 401]
        assert lines[1]["error"] == "invalid_api_key"
        text = json.dumps(lines)
        assert SECRET not in text
        assert "wrong-key" not in text
        assert ("hush hush" in text) is log_prompts


def test_a_request_chooses_its_model_by_name():
    client = client_of(FakeGenerator("from one", name="one"), FakeGenerator("from two", name="two"))
    for name in ("one", "two"):
        answer = client.post(URL, json=ASK | {"model": name}).json()
        assert answer["choices"][0]["message"]["content"] == f"from {name}"
        assert answer["model"] == name
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["one", "two"]
    unknown = client.post(URL, json=ASK | {"model": "three"})
    assert unknown.status_code == 404
    assert "'one', 'two' are" in unknown.json()["error"]["message"]


def test_one_model_that_failed_makes_the_server_unwell_and_leaves_the_other_serving():
    broken = FakeGenerator(name="one")
    broken.failure = "3 steps in a row failed"
    client = client_of(broken, FakeGenerator(name="two"))
    assert client.get("/health").status_code == client.get("/ready").status_code == 503
    assert client.post(URL, json=ASK | {"model": "two"}).status_code == 200


def test_a_defect_is_a_500_with_a_name_and_without_a_reason():
    generator = FakeGenerator()
    generator.error = ZeroDivisionError("inner secret")
    answer = client_of(generator).post(URL, json=ASK)
    assert answer.status_code == 500
    assert answer.headers["x-request-id"].startswith("req_")
    assert "inner secret" not in answer.text


def test_a_request_may_ask_for_so_many_answers_and_no_more():
    client = client_of(max_choices=2)
    assert client.post(URL, json=ASK | {"n": 2}).status_code == 200
    for path, ask in ((URL, ASK), ("/v1/completions", {"model": "fake", "prompt": "hi"})):
        refused = client.post(path, json=ask | {"n": 3})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "n"
        assert "got n=3" in refused.json()["error"]["message"]
