"""Text completions, fill-in-the-middle and infills through ASGI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.draft import Draft
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.server.app import create_app
from diffusiongpt.server.settings import Settings

from fakes import FakeGenerator
from wire import content_of, events_of, replay

COMPLETIONS, FIM, INFILL = "/v1/completions", "/v1/fim/completions", "/v1/infill"
EDITS = "/v1/edits"
ASKS: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "fake", "prompt": "a b"},
    FIM: {"model": "fake", "prompt": "a b", "suffix": "c"},
    INFILL: {"model": "fake", "segments": ["a b", {"mask": 3}, [99], {"mask": 2}, "d"]},
    EDITS: {"model": "fake", "input": "a draft"},
}
TEXT = "Grüße 🎈!"


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator([TEXT, "two", "three", "four"])


@pytest.fixture
def client(generator: FakeGenerator) -> Iterator[TestClient]:
    with TestClient(create_app(generator, Settings()), raise_server_exceptions=False) as client:
        yield client


def test_a_completion_has_openais_shape(client: TestClient, generator: FakeGenerator):
    body = client.post(COMPLETIONS, json=ASKS[COMPLETIONS]).json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    choice = {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}
    assert body["choices"] == [choice]
    assert body["usage"]["completion_tokens"] == len(TEXT.encode())
    assert {"diffusion", "timings", "created", "model"} <= body.keys()
    assert generator.prompts == ["a b"]
    assert generator.generations[0].params.max_tokens == 16


PROMPTS = {
    "text": ("x", ["x"]),
    "ids": ([1, 2], [[1, 2]]),
    "texts": (["x", "y"], ["x", "y"]),
    "lists of ids": ([[1], [2, 3]], [[1], [2, 3]]),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_are_texts_or_token_ids_one_or_several(
    client: TestClient, generator: FakeGenerator, kind: str
):
    prompt, expected = PROMPTS[kind]
    answer = client.post(COMPLETIONS, json={"model": "fake", "prompt": prompt, "seed": 5, "n": 2})
    assert [each["index"] for each in answer.json()["choices"]] == list(range(2 * len(expected)))
    assert generator.prompts == [each for each in expected for _ in range(2)]
    seeds = [each.params.seed for each in generator.generations]
    assert seeds == list(range(5, 5 + 2 * len(expected)))
    assert answer.json()["usage"]["prompt_tokens"] == 3 * len(expected)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_comes_first(client: TestClient, stream: bool):
    ask = {"model": "fake", "prompt": [[72, 105], [79]], "echo": True, "stream": stream}
    answer = client.post(COMPLETIONS, json=ask)
    if not stream:
        assert [each["text"] for each in answer.json()["choices"]] == [f"Hi{TEXT}", "Otwo"]
        return
    for index, text in enumerate([f"Hi{TEXT}", "Otwo"]):
        own = [c for c in events_of(answer.text) if c["choices"][0]["index"] == index]
        assert content_of(own) == text


@pytest.mark.parametrize("url", [COMPLETIONS, FIM])
def test_a_suffix_makes_a_hole_between_two_texts(
    client: TestClient, generator: FakeGenerator, url: str
):
    client.post(url, json={"model": "fake", "prompt": "a", "suffix": "z", "max_tokens": 9})
    client.post(url, json={"model": "fake", "prompt": "a", "suffix": "", "max_tokens": 9})
    assert generator.prompts == [Infill("a", Hole(9), "z"), "a"]


def test_fill_in_the_middle_is_as_long_as_the_models_answers_unless_asked(
    client: TestClient, generator: FakeGenerator
):
    client.post(FIM, json=ASKS[FIM])
    assert generator.prompts == [Infill("a b", Hole(32), "c")]


def test_an_infill_tells_what_fills_each_hole(client: TestClient, generator: FakeGenerator):
    generator.fills = ("x", "y")
    generator.fill_reasons = (FinishReason.STOP, FinishReason.LENGTH)
    body = client.post(INFILL, json=ASKS[INFILL] | {"n": 2}).json()
    assert body["object"] == "infill"
    assert [each["fills"] for each in body["choices"]] == [["x", "y"]] * 2
    assert [each["text"] for each in body["choices"]] == [TEXT, "two"]
    reasons = [each["fill_finish_reasons"] for each in body["choices"]]
    assert reasons == [["stop", "length"]] * 2
    assert generator.prompts[0] == Infill("a b", Hole(3), [99], Hole(2), "d")
    chunks = events_of(client.post(INFILL, json=ASKS[INFILL] | {"stream": True}).text)
    assert [c["choices"][0]["fills"] for c in chunks if "fills" in c["choices"][0]] == [["x", "y"]]


def test_an_edit_is_a_draft_as_long_as_its_canvas(client: TestClient, generator: FakeGenerator):
    body = client.post(EDITS, json=ASKS[EDITS]).json()
    assert body["id"].startswith("edit-")
    assert body["object"] == "edit"
    choice = {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}
    assert body["choices"] == [choice]
    params = generator.generations[0].params
    assert params.draft == Draft("a draft", 0.5, "doubtful")
    assert (params.max_tokens, generator.prompts) == (7, [[]])


def test_an_edit_takes_an_instruction_more_room_and_token_ids(
    client: TestClient, generator: FakeGenerator
):
    options = {"strength": 0.25, "pick": "random", "steps": 3}
    ask = {"input": [72, 105], "instruction": "Greet.", "max_tokens": 9, "diffusion": options}
    client.post(EDITS, json=ASKS[EDITS] | ask | {"n": 2, "seed": 4})
    first, second = (each.params for each in generator.generations)
    assert first.draft == second.draft == Draft((72, 105), 0.25, "random")
    assert (first.max_tokens, first.steps, first.seed, second.seed) == (9, 3, 4, 5)
    assert generator.messages == [{"role": "user", "content": "Greet.\n\nHi"}]


@pytest.mark.parametrize("stop", [None, "e", ["🎈", "zz"]], ids=str)
@pytest.mark.parametrize("frames", ["off", "delta", "full"])
@pytest.mark.parametrize("url", ASKS)
def test_streams_add_up_and_replay_on_every_route(
    client: TestClient, generator: FakeGenerator, url: str, frames: str, stop: Any
):
    ask = ASKS[url] | {"n": 2, "stop": stop}
    whole = [each["text"] for each in client.post(url, json=ask).json()["choices"]]
    generator.texts = generator.texts * 2
    ask |= {"stream": True, "diffusion": {"frames": frames}}
    generator.generations.clear()
    chunks = events_of(client.post(url, json=ask).text)
    for index, text in enumerate(whole):
        own = [each for each in chunks if each["choices"][0]["index"] == index]
        assert content_of(own) == text
        assert own[-1]["choices"][0]["finish_reason"] == "stop"
        assert all("delta" not in each["choices"][0] for each in own)
        if frames != "off":
            assert replay(own) == text


def test_logprobs_have_openais_older_shape_and_are_the_same_streamed_and_whole(
    client: TestClient, generator: FakeGenerator
):
    generator.texts = ["aß"]
    ask = ASKS[COMPLETIONS] | {"logprobs": 1}
    whole = client.post(COMPLETIONS, json=ask).json()["choices"][0]["logprobs"]
    assert whole == {
        "tokens": ["a", "bytes:\\xc3", "bytes:\\x9f"],
        "token_logprobs": [0.0, -1.0, -2.0],
        "top_logprobs": [{"a": 0.0}, {"bytes:\\xc3": -1.0}, {"bytes:\\x9f": -2.0}],
        "text_offset": [0, 1, 1],
    }
    chunks = events_of(client.post(COMPLETIONS, json=ask | {"stream": True}).text)
    parts = [each["choices"][0]["logprobs"] for each in chunks if each["choices"][0]["logprobs"]]
    assert {name: [one for part in parts for one in part[name]] for name in whole} == whole


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    (COMPLETIONS, {"prompt": 5}, "prompt must be a text, a list of texts", "prompt"),
    (COMPLETIONS, {"prompt": None}, "prompt must be a text", "prompt"),
    (COMPLETIONS, {"prompt": [1, "a"]}, "got [1, 'a']", "prompt"),
    (COMPLETIONS, {"prompt": [True]}, "got [True]", "prompt"),
    (COMPLETIONS, {"prompt": []}, "1 to 128 answers, got 0 prompts", "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 65, "n": 2}, "got 65 prompts and n=2", "prompt"),
    (COMPLETIONS, {"prompt": "x" * 100}, "the prompt has 100 tokens", "prompt"),
    (COMPLETIONS, {"suffix": 5}, "suffix: input should be a valid string, got 5", "suffix"),
    (COMPLETIONS, {"logprobs": 21}, "logprobs must be in 0..20, got 21", "logprobs"),
    (COMPLETIONS, {"logprobs": True}, "got True", "logprobs"),
    (COMPLETIONS, {"logprobs": 1, "echo": True}, "logprobs cannot come with echo", "logprobs"),
    (COMPLETIONS, {"best_of": 2}, "best_of is not supported yet, got 2", "best_of"),
    (COMPLETIONS, {"max_tokens": 0}, "max_tokens must be at least 1, got 0", "max_tokens"),
    (COMPLETIONS, {"echo": "yes"}, "got 'yes'", "echo"),
    (FIM, {"prompt": [1]}, "got [1]", "prompt"),
    (FIM, {"repetition_penalty": 1.5}, "repetition_penalty is not supported yet", None),
    (INFILL, {"segments": "a"}, "segments: input should be a valid list", "segments"),
    (INFILL, {"segments": [5]}, "segments.0 must be a text, token ids or", "segments"),
    (INFILL, {"segments": [{"mask": 0}]}, 'at least 1 or "auto", got 0', "segments"),
    (INFILL, {"segments": [{"mask": "3"}]}, "got '3'", "segments.0.mask"),
    (INFILL, {"segments": [{"msk": 1}]}, "segments.0.mask is required", "segments.0.mask"),
    (INFILL, {"max_tokens": 3}, "max_tokens is not supported yet, got 3", "max_tokens"),
    (INFILL, {"diffusion": {"strength": 0.5}}, "and there is none, got 0.5", "diffusion.strength"),
    (COMPLETIONS, {"diffusion": {"pick": "random"}}, "got 'random'", "diffusion.pick"),
    (EDITS, {"input": None}, "input must be a text or token ids, got None", "input"),
    (EDITS, {"input": [1, "a"]}, "got [1, 'a']", "input"),
    (EDITS, {"input": ""}, "a draft must have at least one token, got none", "input"),
    (EDITS, {"input": []}, "a draft must have at least one token, got none", "input"),
    (EDITS, {"input": "x" * 513}, "max_tokens must be in 1..512, got 513", "input"),
    (EDITS, {"instruction": 5}, "got 5", "instruction"),
    (EDITS, {"diffusion": {"strength": 1.5}}, "[0, 1], got 1.5", "diffusion.strength"),
    (EDITS, {"diffusion": {"strength": "x"}}, "got 'x'", "diffusion.strength"),
    (EDITS, {"diffusion": {"pick": "best"}}, "'doubtful' or 'random'", "diffusion.pick"),
    (EDITS, {"logprobs": True}, "logprobs is not supported yet, got True", "logprobs"),
    (INFILL, {"logprobs": 3}, "logprobs: input should be a valid boolean, got 3", "logprobs"),
    (INFILL, {"top_logprobs": 2}, "needs logprobs to be true, got top_logprobs=2", "top_logprobs"),
    (
        INFILL,
        {"logprobs": True, "top_logprobs": 21},
        "top_logprobs must be in 0..20, got 21",
        "top_logprobs",
    ),
]


@pytest.mark.parametrize(("url", "fields", "sentence", "param"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input_is_refused_in_one_sentence(
    client: TestClient,
    generator: FakeGenerator,
    url: str,
    fields: dict[str, Any],
    sentence: str,
    param: str | None,
):
    answer = client.post(url, json=ASKS[url] | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert sentence in error["message"]
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param
    assert generator.generations == []


@pytest.mark.parametrize("url", ASKS)
def test_frames_inside_of_deltas_are_refused_where_there_are_none(client: TestClient, url: str):
    answer = client.post(url, json=ASKS[url] | {"diffusion": {"frame_location": "delta"}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "diffusion.frame_location"


@pytest.mark.parametrize("url", ASKS)
def test_every_route_checks_the_model(client: TestClient, url: str):
    assert client.post(url, json=ASKS[url] | {"model": "other"}).status_code == 404
