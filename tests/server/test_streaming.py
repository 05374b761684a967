"""Frames to chunks: the replay of what is sent is the content that is sent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongpt.engine.frame import Frame, Usage
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.shapes import ChatShape
from diffusiongpt.server.streaming import AnswerHead, ChunkWriter, StreamStyle, usage_chunk

from fakes import frames_of, shuffled_frames
from wire import content_of, replay

HEAD = AnswerHead(id="c", created=1, model="m", object="chat.completion.chunk")
PARAMS = GenerationParams(seed=1, policy="random")
USAGE = Usage(
    prompt_tokens=3,
    completion_tokens=9,
    steps=4,
    nfe=6,
    cached_tokens=2,
    accepted_tokens=5,
    rejected_tokens=1,
)


def chunks_of(frames: Sequence[Frame], *, behind: Sequence[bool] = (), **style: Any) -> list[Any]:
    writer = ChunkWriter(HEAD, ChatShape(), PARAMS, StreamStyle(**style))
    late = [*behind, *[False] * len(frames)]
    return [
        chunk
        for frame, is_behind in zip(frames, late, strict=False)
        for chunk in writer.write(frame, is_behind=is_behind)
    ]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(min_size=1, max_size=30),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 4),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2),
    mode=st.sampled_from(["delta", "full"]),
    interval=st.integers(1, 5),
    location=st.sampled_from(["chunk", "delta"]),
    data=st.data(),
)
def test_replaying_the_frames_gives_the_content(
    text: str,
    seed: int,
    batch: int,
    stop: list[str],
    mode: str,
    interval: int,
    location: str,
    data: st.DataObject,
):
    frames = shuffled_frames(text, seed, batch=batch, stop=stop)
    behind = data.draw(st.lists(st.booleans(), max_size=len(frames)))
    chunks = chunks_of(frames, behind=behind, mode=mode, interval=interval, location=location)
    expected = text
    for end in sorted(text.find(each) for each in stop if each in text)[:1]:
        expected = text[:end]
    assert content_of(chunks) == expected
    assert replay(chunks) == expected
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_broken_bytes_are_the_same_in_content_and_replay():
    data = bytes(random.Random(1).randrange(256) for _ in range(60))
    frames = frames_of(data, random.Random(2).sample(range(60), 60))
    chunks = chunks_of(frames, mode="delta")
    assert content_of(chunks) == data.decode(errors="replace") == replay(chunks)


def test_without_frames_the_stream_is_openais_and_nothing_else():
    chunks = chunks_of(frames_of(b"abc", [2, 0, 1]), include_usage=True)
    assert [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "bc"},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["usage"] is None for chunk in chunks)


def test_a_usage_chunk_says_how_the_tokens_came_about():
    chunk = usage_chunk(HEAD, PARAMS, USAGE)
    assert chunk["choices"] == []
    assert chunk["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 9,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 5,
            "rejected_prediction_tokens": 1,
            "denoising_steps": 4,
            "nfe": 6,
            "tokens_per_forward": 1.5,
        },
    }
    assert chunk["diffusion"]["seed"] == 1


def test_frames_are_numbered_chunks_with_an_empty_delta():
    chunks = chunks_of(frames_of(b"abc", [2, 0, 1]), mode="delta")
    watched = [chunk for chunk in chunks if "diffusion" in chunk]
    assert [chunk["diffusion"]["kind"] for chunk in watched] == [
        "begin",
        "frame",
        "frame",
        "commit",
        "end",
    ]
    assert [chunk["diffusion"]["seq"] for chunk in watched] == [0, 1, 2, 3, 4]
    assert watched[1]["diffusion"] == {
        "v": 1,
        "kind": "frame",
        "seq": 1,
        "block": 0,
        "step": 1,
        "steps": 3,
        "masked": 2,
        "set": [[2, "c", 0.5, "unmask"]],
        "unset": [],
    }
    for chunk in watched:
        assert chunk["choices"][0]["delta"] == {}
        assert chunk["choices"][0]["finish_reason"] is None


def test_full_frames_are_keyframes_with_the_whole_canvas():
    chunks = chunks_of(frames_of(b"abc", [2, 0, 1]), mode="full")
    keyframes = [c["diffusion"] for c in chunks if c.get("diffusion", {}).get("kind") == "keyframe"]
    assert [len(frame["set"]) for frame in keyframes] == [1, 2]


def test_after_dropped_frames_comes_a_keyframe_and_no_content_is_lost():
    frames = frames_of(b"abcdef", [5, 4, 3, 2, 1, 0])
    chunks = chunks_of(frames, behind=[False, True, True, False], mode="delta")
    kinds = [chunk["diffusion"]["kind"] for chunk in chunks if "diffusion" in chunk]
    assert kinds[:3] == ["begin", "keyframe", "frame"]
    assert content_of(chunks) == replay(chunks) == "abcdef"


def test_the_end_says_what_the_answer_cost_and_how_to_repeat_it():
    summary = chunks_of(frames_of(b"abc", [0, 1, 2]), mode="delta")[-2]["diffusion"]
    assert summary["kind"] == "end"
    assert summary["seed"] == 1
    assert summary["policy"] == "random"
    assert summary["nfe"] == 3
    assert summary["tokens_per_forward"] == 1.0
