"""A real engine behind every route: what streams is what is answered, and what frames replay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.app import create_app
from diffusiongpt.server.settings import Settings

from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from wire import content_of, events_of, replay

SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [0, 2, MASK],
    "can_edit": True,
}
TEXT = "the cat 🎈 sat"
CHAT = [{"role": "user", "content": TEXT}]
ASKS = {
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/completions": {"prompt": [TEXT, "one day"]},
    "/v1/fim/completions": {"prompt": TEXT, "suffix": "größer"},
    "/v1/infill": {"segments": [TEXT, {"mask": 9}, "ß", {"mask": 8}, [40, 41], {"mask": 1}]},
    "/v1/edits": {"input": TEXT},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A bidirectional model and a block-causal one."""
    found = {}
    for name, block_length in (("wide", None), ("blocks", 4)):
        folder = found[name] = tmp_path_factory.mktemp(name)
        write_modernbert(
            folder, vocab_size=VOCAB_SIZE, seed=4, section=SECTION, block_length=block_length
        )
        write_tiny_tokenizer(folder)
    return found


@pytest.fixture(scope="module")
def clients(folders):
    """One client for each model."""
    workers = {
        name: EngineWorker(Engine.from_pretrained(folder, name="tiny"))
        for name, folder in folders.items()
    }
    for worker in workers.values():
        worker.start()
    found = {name: TestClient(create_app(each, Settings())) for name, each in workers.items()}
    with found["wide"], found["blocks"]:
        yield found
    for worker in workers.values():
        worker.stop()


def text_of(choice):
    return choice["message"]["content"] if "message" in choice else choice["text"]


def logprobs_of(chunks):
    """The entries of a choice's stream."""
    parts = [each["choices"][0]["logprobs"] for each in chunks]
    return [entry for part in parts if part for entry in part["content"]]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whole_streamed_and_replayed_are_the_same(clients, data):
    url = data.draw(st.sampled_from(sorted(ASKS)))
    wide = url in ("/v1/fim/completions", "/v1/infill") or data.draw(st.booleans())
    client = clients["wide" if wide else "blocks"]
    ask = {
        "model": "tiny",
        **ASKS[url],
        "n": data.draw(st.integers(1, 3)),
        "seed": data.draw(st.integers(0, 9)),
        "temperature": data.draw(st.sampled_from([0.0, 1.0])),
        "diffusion": {"policy": data.draw(st.sampled_from(sorted(PRESETS)))},
    }
    if PRESETS[ask["diffusion"]["policy"]].tosses:
        ask["diffusion"]["steps"] = 24
    policy = PRESETS[ask["diffusion"]["policy"]]
    has_draft = url == "/v1/edits" or (
        url == "/v1/chat/completions" and data.draw(st.booleans(), "prediction")
    )
    if has_draft:
        # A schedule that begins with masks alone takes a draft of which nothing is kept.
        begins_masked = policy.tosses or policy.planned
        strengths = [1.0] if begins_masked else [0.1, 0.5, 1.0]
        ask["diffusion"]["strength"] = data.draw(st.sampled_from(strengths))
        ask["diffusion"]["pick"] = data.draw(st.sampled_from(["doubtful", "random"]))
    if url == "/v1/chat/completions" and not (policy.tosses or policy.single):
        ask["reasoning_effort"] = data.draw(st.sampled_from([None, "instant", "low", "high"]))
    if url != "/v1/infill":
        ask["max_tokens"] = data.draw(st.integers(12 if has_draft else 1, 24))
    if has_draft and url == "/v1/chat/completions":
        ask["prediction"] = {"type": "content", "content": TEXT}
    if url == "/v1/infill":
        ask["logprobs"] = data.draw(st.booleans(), "logprobs")
    if url != "/v1/edits":
        ask["stop"] = data.draw(st.sampled_from([None, "a", ["e", "\x17", "�"]]))
    whole = client.post(url, json=ask)
    assert whole.status_code == 200, whole.text
    choices = whole.json()["choices"]
    ask["stream"] = True
    ask["diffusion"] |= {
        "frames": data.draw(st.sampled_from(["delta", "full"])),
        "frame_interval": data.draw(st.integers(1, 3)),
    }
    chunks = events_of(client.post(url, json=ask).text)
    for choice in choices:
        own = [each for each in chunks if each["choices"][0]["index"] == choice["index"]]
        assert content_of(own) == text_of(choice) == replay(own)
        last = own[-1]["choices"][0]
        assert last["finish_reason"] == choice["finish_reason"]
        assert last.get("fills") == choice.get("fills")
        assert last.get("fill_finish_reasons") == choice.get("fill_finish_reasons")
        if url == "/v1/infill":
            told = choice["logprobs"]
            assert logprobs_of(own) == ((told and told["content"]) or [])
            assert (told is not None) == ask["logprobs"]


def test_an_infill_puts_the_fills_between_what_is_given(clients):
    ask = {"model": "tiny", "seed": 3, "segments": ["the ", {"mask": 3}, " and ", {"mask": 4}, "."]}
    choice = clients["wide"].post("/v1/infill", json=ask).json()["choices"][0]
    first, second = choice["fills"]
    assert len(choice["fills"]) == 2
    assert " and " in choice["text"]
    if "�" not in choice["text"]:
        assert choice["text"] == f"{first} and {second}"


@pytest.mark.parametrize("stop", [None, "t"])
@pytest.mark.parametrize("frames", ["off", "full"])
def test_an_infill_tells_the_log_probabilities_of_every_holes_tokens(
    clients, folders, frames, stop
):
    ask = {"model": "tiny", "seed": 2, "temperature": 1.0, "logprobs": True, "top_logprobs": 3}
    ask |= {"segments": ["the ", {"mask": 9}, " and ", {"mask": 4}, "."], "stop": stop}
    ask["diffusion"] = {"frames": frames, "policy": "random"}
    choice = clients["wide"].post("/v1/infill", json=ask).json()["choices"][0]
    chunks = events_of(clients["wide"].post("/v1/infill", json=ask | {"stream": True}).text)
    entries = choice["logprobs"]["content"]
    assert logprobs_of(chunks) == entries
    engine = Engine.from_pretrained(folders["wide"])
    params = GenerationParams(
        seed=2, temperature=1.0, policy="random", stop=(stop,) if stop else ()
    )
    done = engine.generate([Infill("the ", Hole(9), " and ", Hole(4), ".")], params)[0]
    between = len(engine.encode(" and "))
    token_of = {each.position: each for each in done.tokens}
    for hole, (start, length) in enumerate([(0, 9), (9 + between, 4)]):
        own = [each for each in entries if each["hole"] == hole]
        for at, entry in enumerate(own, start):
            text, data = engine.tokenizer.spell(token_of[at].token_id)
            assert (entry["token"], entry["bytes"]) == (text, data and list(data))
            assert entry["logprob"] == pytest.approx(token_of[at].log_prob, abs=1e-3)
            assert len(entry["top_logprobs"]) == 3
            assert entry["top_logprobs"][0]["logprob"] >= entry["logprob"]
        # What stands behind a stop string is cut off, and nobody is told of it.
        written = b"".join(bytes(each["bytes"] or []) for each in own).decode(errors="replace")
        assert written.startswith(choice["fills"][hole])
        if choice["fill_finish_reasons"][hole] == "stop":
            assert len(own) < length
            assert stop not in choice["fills"][hole]
        else:
            assert len(own) == length
    assert [each["hole"] for each in entries] == sorted(each["hole"] for each in entries)
    reasons = {"length"} if stop is None else {"stop", "length"}
    assert set(choice["fill_finish_reasons"]) <= reasons


@pytest.mark.parametrize("stream", [False, True])
def test_a_hole_of_automatic_length_is_filled_as_the_engine_fills_it(clients, folders, stream):
    hole = {"mask": "auto", "candidates": [2, 5, 9]}
    ask = {"model": "tiny", "seed": 3, "n": 2, "segments": ["the ", hole, " and ", {"mask": 2}]}
    ask |= {"stream": stream, "diffusion": {"frames": "delta"}}
    answer = clients["wide"].post("/v1/infill", json=ask)
    infill = Infill("the ", Hole("auto", candidates=(2, 5, 9)), " and ", Hole(2))
    engine = Engine.from_pretrained(folders["wide"])
    expected = [engine.generate([infill], GenerationParams(seed=seed))[0] for seed in (3, 4)]
    if not stream:
        choices = answer.json()["choices"]
        assert [each["text"] for each in choices] == [each.text for each in expected]
        assert [each["fills"] for each in choices] == [list(each.fills) for each in expected]
        return
    for index, each in enumerate(expected):
        own = [c for c in events_of(answer.text) if c["choices"][0]["index"] == index]
        assert content_of(own) == each.text == replay(own)


@pytest.mark.parametrize(
    ("segments", "sentence"),
    [
        ([{"mask": "auto"}, "a", {"mask": "auto"}], "one hole of an infill may have an automatic"),
        ([{"mask": "auto", "candidates": []}], "1 to 16 candidates for its length, got 0"),
        ([{"mask": "auto", "candidates": [0]}], "a hole's length must be in"),
        ([{"mask": 3, "candidates": [1]}], 'candidates go with mask "auto", got mask 3'),
        ([{"mask": "long"}], "got 'long'"),
        (["a"], "an infill must have 1 to 64 holes, got 0"),
        ([{"mask": 500}], "more than the model's context"),
    ],
    ids=str,
)
def test_holes_that_cannot_be_filled_are_refused(clients, segments, sentence):
    answer = clients["wide"].post("/v1/infill", json={"model": "tiny", "segments": segments})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"].startswith("segments")


@pytest.mark.parametrize(
    ("url", "fields"),
    [("/v1/completions", {"prompt": [7, 8]}), ("/v1/infill", {"segments": [[7], {"mask": 3}]})],
)
def test_a_model_without_a_tokenizer_has_no_text_to_answer_with(tmp_path, url, fields):
    write_modernbert(tmp_path, vocab_size=VOCAB_SIZE, seed=4, section=SECTION)
    worker = EngineWorker(Engine.from_pretrained(tmp_path, name="tiny"))
    worker.start()
    with TestClient(create_app(worker, Settings())) as client:
        answer = client.post(url, json={"model": "tiny", **fields})
    worker.stop()
    assert answer.status_code == 400
    assert "has no tokenizer.json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("url", ["/v1/fim/completions", "/v1/infill"])
def test_a_model_that_does_not_see_what_follows_says_so(clients, url):
    answer = clients["blocks"].post(url, json={"model": "tiny", **ASKS[url]})
    assert answer.status_code == 400
    assert "is block-causal and sees nothing after its block" in answer.json()["error"]["message"]


def test_a_seed_gives_each_choice_what_it_gives_alone(clients):
    ask = {"model": "tiny", "prompt": TEXT, "max_tokens": 12, "logprobs": 2}
    three = clients["wide"].post("/v1/completions", json={**ask, "n": 3, "seed": 4}).json()
    for index, choice in enumerate(three["choices"]):
        alone = clients["wide"].post("/v1/completions", json={**ask, "seed": 4 + index}).json()
        assert alone["choices"][0]["text"] == choice["text"]
        assert alone["choices"][0]["logprobs"]["tokens"] == choice["logprobs"]["tokens"]


@pytest.mark.parametrize("name", ["wide", "blocks"])
def test_a_prediction_is_counted_token_by_token(clients, folders, name):
    engine = Engine.from_pretrained(folders[name], name="tiny")
    length = len(engine.encode(TEXT))
    ask = {"model": "tiny", "messages": CHAT, "max_tokens": 24, "seed": 2, "temperature": 1.0}
    ask |= {"prediction": {"type": "content", "content": TEXT}, "diffusion": {"strength": 0.0}}
    body = clients[name].post("/v1/chat/completions", json=ask).json()
    details = body["usage"]["completion_tokens_details"]
    assert body["choices"][0]["message"]["content"].startswith(TEXT)
    assert details["accepted_prediction_tokens"] == length
    assert details["rejected_prediction_tokens"] == 0
    ask["diffusion"] = {"strength": 1.0}
    redone = clients[name].post("/v1/chat/completions", json=ask).json()
    del ask["prediction"], ask["diffusion"]
    plain = clients[name].post("/v1/chat/completions", json=ask).json()
    assert redone["choices"] == plain["choices"]
    counts = redone["usage"]["completion_tokens_details"]
    kept, lost = (counts[f"{each}_prediction_tokens"] for each in ("accepted", "rejected"))
    assert kept + lost == length
    assert lost > 0


def test_a_watched_edit_shows_its_draft_before_anything_is_done_to_it(clients):
    ask = {"model": "tiny", "input": TEXT, "stream": True, "seed": 1}
    ask["diffusion"] = {"frames": "delta", "strength": 0.3, "frame_interval": 3}
    events = events_of(clients["wide"].post("/v1/edits", json=ask).text)
    frames = [each["diffusion"] for each in events if "diffusion" in each]
    assert [frame["kind"] for frame in frames[:2]] == ["begin", "frame"]
    assert (frames[1]["step"], frames[1]["unset"]) == (0, [])
    assert "".join(text for _, text, *_ in frames[1]["set"]) == TEXT
