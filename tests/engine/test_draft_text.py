"""Drafts as text: their frames, what settles when, and what is left behind."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest

from diffusiongpt.engine import Draft, EditParams, Engine, GenerationParams
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.replay import Replay

from tiny_models import write_modernbert
from tiny_tokenizer import DELETE, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    section = {
        "mask_token_id": MASK,
        "stop_token_ids": [IM_END],
        "never_emit_token_ids": [0, 2, MASK, DELETE],
        "can_edit": True,
    }
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=3, section=section)
    return Engine.from_pretrained(write_tiny_tokenizer(folder), dtype="float32")


TEXT = "the cat sat on the mat and söme ☂ went"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"strength": 0.0},
        {"strength": 0.2, "pick": "random"},
        {"edits": EditParams(threshold=0.01, max_rounds=3), "strength": 0.1},
        {"edits": EditParams(threshold=0.01, max_rounds=2), "strength": 0.0, "block_length": 8},
        {"block_length": 4, "policy": "confidence", "strength": 0.9},
        {"stop": ("on the", "zz")},
    ],
    ids=str,
)
def test_frames_begin_with_the_draft_and_their_replay_is_the_content(
    engine: Engine, fields: dict[str, Any]
):
    parts = {name: fields[name] for name in ("strength", "pick") if name in fields}
    rest = {name: value for name, value in fields.items() if name not in parts}
    params = GenerationParams(
        max_tokens=48, draft=Draft(TEXT, **parts), watch=True, seed=4, ignore_eos=True, **rest
    )
    frames = list(engine.stream("A story: ", params))
    replay, content = Replay(), ""
    for index, frame in enumerate(frames):
        text = replay.apply(frame.set, frame.unset)
        content += frame.content
        if index == 0:
            assert text == TEXT
            assert frame.step == 0
            assert (frame.content, frame.settled) == ("", 0)
    assert content == replay.text == engine.generate(["A story: "], params)[0].text
    assert len(frames[1].unset) == len(frames[1].remasked)
    usage = frames[-1].usage
    assert usage is not None
    length = len(engine.encode(TEXT))
    assert usage.accepted_tokens + usage.rejected_tokens == length
    if parts.get("strength") == 0.0 and not rest:
        assert frames[1].content == TEXT
        assert usage.accepted_tokens == length


def test_a_stop_string_or_an_end_within_what_is_kept_ends_it_at_once(engine: Engine):
    params = GenerationParams(max_tokens=48, draft=Draft(TEXT, 0.0), stop=(" on",), watch=True)
    frames = list(engine.stream("A story: ", params))
    assert len(frames) == 2
    assert "".join(frame.content for frame in frames) == "the cat sat"
    assert frames[-1].finish_reason is FinishReason.STOP
    assert frames[-1].usage is not None
    assert frames[-1].usage.nfe == 0
    assert frames[-1].usage.rejected_tokens > 0
    ids = (*engine.encode("the cat"), IM_END, *engine.encode(" sat"))
    params = GenerationParams(max_tokens=48, draft=Draft(ids, 0.0))
    done = engine.generate(["A story: "], params)[0]
    assert (done.text, done.finish_reason, done.usage.nfe) == ("the cat", FinishReason.STOP, 0)
    assert done.usage.accepted_tokens == len(engine.encode("the cat"))
    assert engine.num_running == 0


def draw_request(engine: Engine, draw: random.Random) -> Any:
    """A draft with whatever may go with one; None where that is refused."""
    length = draw.randint(1, 40)
    ids = [draw.randint(6, VOCAB_SIZE - 1) for _ in range(length)]
    if draw.random() < 0.2:
        ids[draw.randrange(length)] = IM_END
    edits = draw.choice([None, True, EditParams(threshold=0.05, doubt=0.01, max_rounds=3)])
    params = GenerationParams(
        max_tokens=length + draw.choice([0, 1, 12]),
        policy=draw.choice(["confidence", "ancestral", "threshold", "joint", "first_hitting"]),
        draft=Draft(
            tuple(ids), draw.choice([0.0, 0.1, 0.6, 1.0]), draw.choice(["doubtful", "random"])
        ),
        block_length=draw.choice([None, 3, 8]),
        cache=draw.choice([None, "prefix", "dual"]),
        stop=draw.choice([(), ("e",)]),
        ignore_eos=draw.random() < 0.5,
        edits=edits,
        seed=draw.randrange(99),
        watch=True,
    )
    with suppress(InvalidRequest):  # nothing of it may change
        return engine.prepare(list(range(10, 10 + draw.randint(0, 9))), params)
    return None


def test_whatever_goes_with_drafts_replays_adds_up_and_leaves_nothing_behind(engine: Engine):
    draw = random.Random(7)
    drawn = (draw_request(engine, draw) for _ in range(40))
    requests = [request for request in drawn if request is not None]
    for request in requests:
        engine.add(request)
    frames: dict[str, list[Frame]] = {}
    for tick in range(10_000):
        if engine.is_idle:
            break
        for frame in engine.step():
            frames.setdefault(frame.request_id, []).append(frame)
        if tick % 9 == 8 and engine._scheduler.running:
            engine.abort(draw.choice(list(engine._scheduler.running)))
    assert engine._scheduler.table.num_free == engine.config.num_slots
    ended = {request.request_id: frames[request.request_id][-1] for request in requests}
    assert {each.finish_reason for each in ended.values()} == {*FinishReason} - {FinishReason.ERROR}
    for request in requests:
        last = ended[request.request_id]
        if last.finish_reason is FinishReason.ABORT:
            continue
        replay = Replay()
        for frame in frames[request.request_id]:
            replay.apply(frame.set, frame.unset)
        assert replay.text == "".join(each.content for each in frames[request.request_id])
        tokens = {p: t for frame in frames[request.request_id] for p, t in frame.tokens}
        kept = sum(tokens[p] == t for p, t in enumerate(request.draft.token_ids))
        assert last.usage is not None
        lost = last.usage.rejected_tokens
        assert last.usage.accepted_tokens + lost == len(request.draft.token_ids)
        if last.finish_reason is FinishReason.LENGTH:
            assert last.usage.accepted_tokens == kept
