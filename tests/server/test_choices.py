"""Several choices, log-probabilities and usage, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine.errors import QueueFull
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.app import create_app
from diffusiongpt.server.settings import Settings

from fakes import FakeGeneration, FakeGenerator
from wire import content_of, events_of, replay

URL = "/v1/chat/completions"
TEXTS = ["one", "größer 🎈", "three"]
ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


def client_of(generator: FakeGenerator) -> TestClient:
    return TestClient(create_app(generator, Settings()))


def test_every_choice_has_its_index_and_its_seed():
    generator = FakeGenerator(TEXTS)
    answer = client_of(generator).post(URL, json=ASK | {"n": 3, "seed": 2**63 - 2}).json()
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2]
    assert [each["message"]["content"] for each in answer["choices"]] == TEXTS
    seeds = [each.params.seed for each in generator.generations]
    assert seeds == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert answer["diffusion"]["seed"] == 2**63 - 2


def test_without_a_seed_the_others_follow_the_one_that_was_drawn():
    generator = FakeGenerator()
    answer = client_of(generator).post(URL, json=ASK | {"n": 3})
    assert [each.params.seed for each in generator.generations] == [7, 8, 9]
    assert answer.headers["x-diffusiongpt-seed"] == "7"


def test_usage_is_the_sum_over_the_choices_and_the_prompt_counts_once():
    usage = client_of(FakeGenerator(TEXTS)).post(URL, json=ASK | {"n": 3}).json()["usage"]
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert usage["prompt_tokens"] == 3
    assert usage["completion_tokens"] == num_bytes
    assert usage["total_tokens"] == num_bytes + 3
    assert usage["completion_tokens_details"] == {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
        "denoising_steps": num_bytes,
        "nfe": num_bytes,
        "tokens_per_forward": 1.0,
    }


@pytest.mark.parametrize("frames", ["off", "delta", "full"])
def test_choices_are_streamed_side_by_side(frames: str):
    generator = FakeGenerator(TEXTS)
    ask = ASK | {"n": 3, "stream": True, "stream_options": {"include_usage": True}}
    answer = client_of(generator).post(URL, json=ask | {"diffusion": {"frames": frames}})
    chunks = events_of(answer.text)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == sum(len(t.encode()) for t in TEXTS)
    for index, text in enumerate(TEXTS):
        own = [each for each in chunks if each["choices"] and each["choices"][0]["index"] == index]
        assert own[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert own[-1]["choices"][0]["finish_reason"] == "stop"
        assert content_of(own) == text
        if frames != "off":
            assert replay(own) == text
            assert [e["diffusion"]["seed"] for e in own if e.get("diffusion", {}).get("seed")] == [
                7 + index
            ]
    order = [each["choices"][0]["index"] for each in chunks if each["choices"]]
    assert order.index(2) < len(order) - 1 - order[::-1].index(0)


def logprobs_of(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [each["choices"][0]["logprobs"] for each in chunks if each["choices"]]
    return [token for each in found if each for token in each["content"]]


def test_logprobs_are_openais_and_the_same_streamed_and_whole():
    client = client_of(FakeGenerator("größer"))
    ask = ASK | {"logprobs": True, "top_logprobs": 2}
    whole = client.post(URL, json=ask).json()["choices"][0]["logprobs"]
    chunks = events_of(client.post(URL, json=ask | {"stream": True}).text)
    assert logprobs_of(chunks) == whole["content"]
    assert whole["refusal"] is None
    assert bytes(b for each in whole["content"] for b in each["bytes"]).decode() == "größer"
    assert whole["content"][0] == {
        "token": "g",
        "logprob": 0.0,
        "bytes": [103],
        "top_logprobs": [
            {"token": "g", "logprob": 0.0, "bytes": [103]},
            {"token": "h", "logprob": 0.0, "bytes": [104]},
        ],
    }
    assert [each["logprob"] for each in whole["content"]] == [-float(i) for i in range(8)]


def test_logprobs_end_where_a_stop_string_cuts():
    ask = ASK | {"logprobs": True, "stop": ["re"]}
    choice = client_of(FakeGenerator("three")).post(URL, json=ask).json()["choices"][0]
    assert choice["message"]["content"] == "th"
    assert [each["token"] for each in choice["logprobs"]["content"]] == ["t", "h"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


def test_without_asking_there_are_no_logprobs():
    client = client_of(FakeGenerator())
    assert client.post(URL, json=ASK).json()["choices"][0]["logprobs"] is None
    assert logprobs_of(events_of(client.post(URL, json=ASK | {"stream": True}).text)) == []


def test_when_the_queue_is_full_halfway_nothing_goes_on():
    class Crowded(FakeGenerator):
        def submit(self, prompt: object, params: GenerationParams) -> FakeGeneration:
            if len(self.generations) == 2:
                raise QueueFull("2 requests are waiting already")
            return super().submit(prompt, params)  # type: ignore[arg-type]

    generator = Crowded()
    assert client_of(generator).post(URL, json=ASK | {"n": 3}).status_code == 429
    assert [each.was_aborted for each in generator.generations] == [True, True]


def test_one_choice_that_fails_ends_the_whole_answer():
    class Failing(FakeGenerator):
        def submit(self, prompt: object, params: GenerationParams) -> FakeGeneration:
            generation = super().submit(prompt, params)  # type: ignore[arg-type]
            if len(self.generations) == 2:
                generation.change_last(finish_reason=FinishReason.ERROR, error="the engine failed")
            return generation

    client = client_of(Failing())
    assert client.post(URL, json=ASK | {"n": 2}).status_code == 500
    client = client_of(generator := Failing())
    text = client.post(URL, json=ASK | {"n": 2, "stream": True}).text
    assert "[DONE]" not in text
    assert json.loads(text.strip().split("\n")[-1][6:])["error"]["message"] == "the engine failed"
    assert all(each.was_aborted for each in generator.generations)
