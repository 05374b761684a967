"""The server on a real socket: the openai client, clients that leave, a graceful stop."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest
import uvicorn
from sse_starlette.sse import AppStatus

from diffusiongpt.engine.draft import Draft
from diffusiongpt.server.app import create_app
from diffusiongpt.server.run import DrainingServer
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState

from fakes import FakeGenerator, shuffled_frames

TEXT = "Grüße, 世界 🎈!"
ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


@contextmanager
def serving(generator: FakeGenerator, state: ServerState | None = None) -> Iterator[str]:
    """The base URL of a server on a free loopback port."""
    AppStatus.disable_automatic_graceful_drain()
    state = state or ServerState()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(generator, Settings(), state), log_level="warning", timeout_graceful_shutdown=5
    )
    server = DrainingServer(config, state)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def wait_for(condition: object, seconds: float = 5.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeGenerator(TEXT)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_openai_client_reads_an_answer(client: openai.OpenAI):
    answer = client.chat.completions.create(**ASK)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == TEXT


@pytest.mark.parametrize(
    "diffusion",
    [{}, {"frames": "delta"}, {"frames": "full"}, {"frames": "delta", "frame_location": "delta"}],
    ids=str,
)
def test_the_openai_client_streams_the_same_text_with_and_without_frames(
    client: openai.OpenAI, diffusion: dict[str, str]
):
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        **ASK, stream=True, extra_body={"diffusion": diffusion}
    )
    # As the client's README loops: no guard against missing choices or deltas.
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == TEXT


def test_the_openai_clients_stream_helper_assembles_the_answer(client: openai.OpenAI):
    with client.chat.completions.stream(
        model="fake",
        messages=[{"role": "user", "content": "hi"}],
        stream_options={"include_usage": True},
        extra_body={"diffusion": {"frames": "delta"}},
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT
    assert final.usage is not None
    assert final.usage.completion_tokens == len(TEXT.encode())


def test_the_openai_client_reads_several_choices_and_their_logprobs(client: openai.OpenAI):
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        **ASK, n=2, logprobs=True, top_logprobs=1
    )
    for index, choice in enumerate(answer.choices):
        assert choice.index == index
        tokens = choice.logprobs.content
        assert b"".join(bytes(each.bytes) for each in tokens).decode() == TEXT
        assert all(len(each.top_logprobs) == 1 for each in tokens)
    with client.chat.completions.stream(
        model="fake",
        messages=[{"role": "user", "content": "hi"}],
        n=2,
        logprobs=True,
        extra_body={"diffusion": {"frames": "delta"}},
    ) as stream:
        final = stream.until_done().get_final_completion()
    assert [choice.message.content for choice in final.choices] == [TEXT, TEXT]
    lengths = [len(choice.logprobs.content) for choice in final.choices if choice.logprobs]
    assert lengths == [len(TEXT.encode())] * 2


def test_the_openai_client_sends_biases_penalties_and_efforts():
    generator = FakeGenerator(TEXT)
    with (
        serving(generator) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        client.chat.completions.create(  # type: ignore[call-overload]
            **ASK,
            logit_bias={"5": -100},
            frequency_penalty=0.5,
            presence_penalty=1.0,
            max_completion_tokens=32,
            extra_body={"reasoning_effort": "low", "min_p": 0.1},
        )
        with pytest.raises(openai.BadRequestError, match="logit_bias must be in"):
            client.completions.create(model="fake", prompt="a", logit_bias={"5": 1000})
    params = generator.generations[0].params
    assert params.logit_bias == ((5, -100.0),)
    assert (params.frequency_penalty, params.presence_penalty) == (0.5, 1.0)
    assert (params.min_p, params.steps) == (0.1, 8)


def test_the_openai_client_posts_infills_and_fill_in_the_middle():
    generator = FakeGenerator(TEXT)
    generator.fills = ("x",)
    with (
        serving(generator) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        body = {"model": "fake", "segments": ["a", {"mask": 4}]}
        answer = client.post("/infill", body=body, cast_to=httpx.Response).json()
        assert answer["choices"][0]["fills"] == ["x"]
        body = {"model": "fake", "prompt": "a", "suffix": "b"}
        answer = client.post("/fim/completions", body=body, cast_to=openai.types.Completion)
        assert answer.choices[0].text == TEXT


def test_the_openai_client_sends_predictions_and_reads_what_became_of_them():
    frames = shuffled_frames(TEXT)
    usage = dataclasses.replace(frames[-1].usage, accepted_tokens=4, rejected_tokens=2)
    frames[-1] = dataclasses.replace(frames[-1], usage=usage)
    generator = FakeGenerator(frames=frames)
    with (
        serving(generator) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hi"}],
            prediction={"type": "content", "content": "a text"},
            extra_body={"diffusion": {"strength": 0.2}},
        )
        details = answer.usage.completion_tokens_details
        assert details.accepted_prediction_tokens == 4
        assert details.rejected_prediction_tokens == 2
        body = {"model": "fake", "input": "a text", "instruction": "Make it good."}
        edit = client.post("/edits", body=body, cast_to=openai.types.Completion)
        assert edit.choices[0].text == TEXT
    prediction, draft = (each.params.draft for each in generator.generations)
    assert (prediction, draft) == (Draft("a text", 0.2), Draft("a text"))


def test_the_openai_client_reads_text_completions(client: openai.OpenAI):
    ask = {"model": "fake", "prompt": ["a", "b"], "n": 2, "logprobs": 1, "seed": 1}
    answer = client.completions.create(**ask)  # type: ignore[call-overload]
    assert [choice.text for choice in answer.choices] == [TEXT] * 4
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].logprobs.text_offset[:3] == [0, 1, 2]
    ask |= {"stream": True, "extra_body": {"diffusion": {"frames": "delta"}}, "suffix": "c"}
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**ask):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [TEXT] * 4


def test_the_asynchronous_client_reads_the_frames(url: str):
    async def read() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(  # type: ignore[call-overload]
                **ASK, stream=True, extra_body={"diffusion": {"frames": "delta"}}
            )
            return [
                chunk.model_extra["diffusion"]["kind"]
                async for chunk in stream
                if "diffusion" in chunk.model_extra
            ]

    kinds = asyncio.run(read())
    assert kinds[0] == "begin"
    assert kinds[-1] == "end"
    assert "frame" in kinds


def test_refusals_are_the_clients_own_exceptions(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="steps must be in") as caught:
        client.chat.completions.create(  # type: ignore[call-overload]
            **ASK, max_tokens=3, extra_body={"diffusion": {"steps": 9}}
        )
    assert caught.value.param == "diffusion.steps"
    assert caught.value.request_id is not None
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ASK | {"model": "other"})  # type: ignore[call-overload]


def test_a_stream_is_aborted_when_its_client_leaves():
    generator = FakeGenerator(TEXT, pause=0.05)
    with serving(generator) as url:
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=ASK | {"stream": True}
        ) as answer:
            next(answer.iter_lines())
        assert wait_for(lambda: generator.generations[0].was_aborted)
        assert not generator.generations[0].has_finished


@pytest.mark.parametrize("stream", [False, True])
def test_all_choices_are_aborted_when_their_client_leaves(stream: bool):
    generator = FakeGenerator(TEXT, pause=0.05)
    ask = ASK | {"stream": stream, "n": 3}
    with serving(generator) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{url}/v1/chat/completions",
                json=ask,
                timeout=httpx.Timeout(5, read=0.01 if stream else 0.3),
            )
        assert wait_for(lambda: len(generator.generations) == 3)
        assert wait_for(lambda: all(each.was_aborted for each in generator.generations))
        assert not any(each.has_finished for each in generator.generations)


def test_an_answer_is_aborted_when_its_client_leaves():
    generator = FakeGenerator(TEXT, pause=0.2)
    with serving(generator) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=0.5)
        assert wait_for(lambda: generator.generations[0].was_aborted)
        assert not generator.generations[0].has_finished


def test_streams_that_run_are_finished_before_the_server_stops():
    generator = FakeGenerator(TEXT, pause=0.05)
    state = ServerState()
    lines: list[str] = []
    with (
        serving(generator, state) as url,
        httpx.stream("POST", f"{url}/v1/chat/completions", json=ASK | {"stream": True}) as answer,
    ):
        reader = answer.iter_lines()
        lines.append(next(reader))
        state.is_draining = True
        refused = httpx.post(f"{url}/v1/chat/completions", json=ASK)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        lines += list(reader)
    assert lines[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in lines[-3:]
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == TEXT
