"""The engine on toys: the same answer alone and in company, ends, failures, exact savings."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import EngineFailure, InvalidRequest, QueueFull
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.params import EditParams, GenerationParams
from diffusiongpt.engine.policies import PRESETS

from toy_models import HashModel, ScriptedModel, toy_engine


def hash_model(**fields: object) -> HashModel:
    return HashModel(vocab_size=40, context_length=64, **fields)  # type: ignore[arg-type]


def run(engine: Engine, *requests: tuple[Sequence[int], GenerationParams]) -> list[list[Frame]]:
    """The frames of each request, all started together."""
    prepared = [engine.prepare(prompt, params) for prompt, params in requests]
    for request in prepared:
        engine.add(request)
    frames: dict[str, list[Frame]] = {request.request_id: [] for request in prepared}
    while not engine.is_idle:
        for frame in engine.step():
            frames[frame.request_id].append(frame)
    return list(frames.values())


def tokens_of(frames: Sequence[Frame]) -> dict[int, int]:
    return {position: token for frame in frames for position, token in frame.tokens}


# What a request may be, for tests that mix them.
@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], GenerationParams]:
    prompt = draw(st.lists(st.integers(0, 38), max_size=20))
    max_tokens = draw(st.integers(1, 40))
    policy = draw(st.sampled_from(sorted(PRESETS)))
    block_length = draw(st.sampled_from([0, 4, 8]))
    blocks = 1 if not block_length else -(-max_tokens // block_length)
    return prompt, GenerationParams(
        max_tokens=max_tokens,
        policy=policy,
        steps=draw(
            st.integers(blocks, 2 * max_tokens)
            if PRESETS[policy].tosses
            else st.none()
            if PRESETS[policy].single
            else st.none() | st.integers(blocks, max_tokens)
        ),
        block_length=block_length,
        temperature=draw(st.sampled_from([0.0, 0.7, 1.0])),
        top_p=draw(st.sampled_from([0.9, 1.0])),
        top_k=draw(st.sampled_from([0, 5])),
        min_p=draw(st.sampled_from([0.0, 0.1])),
        logit_bias=draw(st.sampled_from([(), ((3, 2.5), (4, -100.0)), ((0, 1.0),)])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, -1.3])),
        gap=draw(st.integers(1, 4)),
        edits=draw(st.sampled_from([None, EditParams(threshold=0.08, max_rounds=3)])),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
    )


@settings(max_examples=40, deadline=None)
@given(request=requests(), neighbours=st.lists(requests(), max_size=15), data=st.data())
def test_a_request_is_answered_the_same_alone_and_in_company(
    request: tuple[list[int], GenerationParams],
    neighbours: list[tuple[list[int], GenerationParams]],
    data: st.DataObject,
):
    alone = run(toy_engine(hash_model()), request)[0]
    place = data.draw(st.integers(0, len(neighbours)))
    company = [*neighbours[:place], request, *neighbours[place:]]
    together = run(toy_engine(hash_model(), num_slots=6), *company)[place]
    assert tokens_of(together) == tokens_of(alone)
    assert [frame.masked for frame in together] == [frame.masked for frame in alone]


@settings(max_examples=20, deadline=None)
@given(request=requests(), neighbours=st.lists(requests(), min_size=1, max_size=8), data=st.data())
def test_aborting_neighbours_changes_nothing(
    request: tuple[list[int], GenerationParams],
    neighbours: list[tuple[list[int], GenerationParams]],
    data: st.DataObject,
):
    alone = run(toy_engine(hash_model()), request)[0]
    engine = toy_engine(hash_model(), num_slots=4)
    ours = engine.prepare(*request)
    others = [engine.prepare(*each) for each in neighbours]
    for each in [*others[: len(others) // 2], ours, *others[len(others) // 2 :]]:
        engine.add(each)
    frames: list[Frame] = []
    while not engine.is_idle:
        frames += [frame for frame in engine.step() if frame.request_id == ours.request_id]
        if others and data.draw(st.booleans()):
            engine.abort(others.pop().request_id)
    assert tokens_of(frames) == tokens_of(alone)
    assert engine._scheduler.table.num_free == 4


def plain_loop(
    model: HashModel, prompt: list[int], max_tokens: int, steps: int, block_length: int
) -> list[int]:
    """Greedy low-confidence decoding as LLaDA's reference does it, one canvas, all logits."""
    ids = torch.tensor(prompt + [model.mask_token_id] * max_tokens)
    start = len(prompt)
    per_block = steps * block_length // max_tokens
    for block in range(start, len(ids), block_length):
        inside = torch.zeros_like(ids, dtype=torch.bool)
        inside[block : block + block_length] = True
        for step in range(per_block):
            masked = (ids == model.mask_token_id) & inside
            logits = model.logits(ids.tolist())
            logits[:, model.mask_token_id] = -torch.inf
            confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
            count = -(-int(masked.sum()) // (per_block - step))
            best = confidence.masked_fill(~masked, -1.0).topk(count).indices
            ids[best] = predicted[best]
    return ids[start:].tolist()


@pytest.mark.parametrize(("steps", "block_length"), [(24, 24), (6, 24), (24, 8), (6, 8), (3, 8)])
def test_greedy_confidence_equals_the_plain_loop(steps: int, block_length: int):
    prompt = [1, 5, 9]
    params = GenerationParams(
        max_tokens=24, policy="confidence", steps=steps, block_length=block_length, temperature=0.0
    )
    completion = toy_engine(hash_model()).generate([prompt], params)[0]
    expected = plain_loop(hash_model(), prompt, 24, steps, block_length)
    assert list(completion.token_ids) == expected


def test_an_answer_may_be_longer_than_the_context_and_sees_the_last_of_it():
    seen: list[Tensor] = []

    class Watched(HashModel):
        def denoise(self, ids: Tensor) -> Tensor:
            seen.append(ids.clone())
            return super().denoise(ids)

    model = Watched(vocab_size=40, context_length=32)
    params = GenerationParams(
        max_tokens=100, block_length=8, policy="confidence", temperature=0.0, steps=13
    )
    completion = toy_engine(model).generate([[3] * 10], params)[0]
    assert len(completion.token_ids) == 100
    assert max(len(ids) for ids in seen) == 32
    text = [3] * 10 + list(completion.token_ids)
    # The seventh block: 16 positions of text, the block, and one block of masks after it.
    window = seen[6].tolist()
    assert window[:16] == text[42:58]
    assert window[16:] == [model.mask_token_id] * 16


def test_block_causal_blocks_are_aligned_and_see_nothing_after_them():
    seen: list[int] = []

    class Watched(HashModel):
        def backbone(
            self,
            ids: Tensor,
            position_ids: Tensor,
            plan: AttentionPlan,
            wanted: Tensor | None = None,
        ) -> Tensor:
            seen.append(ids.shape[1])
            assert plan.block_lengths == (8,)
            return super().backbone(ids, position_ids, plan, wanted)

    model = Watched(vocab_size=40, context_length=32, block_length=8)
    params = GenerationParams(max_tokens=30, policy="confidence", temperature=0.0, steps=5)
    completion = toy_engine(model).generate([[3] * 5], params)[0]
    assert len(completion.token_ids) == 30
    # Blocks end at 8, 16, 24, 32 and 40 of the canvas; the last one has slid on by a block.
    assert seen == [8, 16, 24, 32, 32]


def test_a_timed_policy_runs_no_forward_that_cannot_commit():
    model = hash_model()
    params = GenerationParams(max_tokens=40, policy="ancestral", steps=40, temperature=1.0, seed=3)
    completion = toy_engine(model).generate([[1]], params)[0]
    assert completion.usage.nfe == completion.usage.steps == model.num_forwards
    assert model.num_forwards < 32  # 40 (1 - (1 - 1/40)^40) is 25.5 on average
    assert model.num_head_rows == 40


def test_the_head_sees_candidates_only():
    model = hash_model()
    params = GenerationParams(
        max_tokens=32, policy="confidence", steps=4, block_length=8, temperature=0.0
    )
    toy_engine(model).generate([[1] * 20], params)
    assert model.num_head_rows == 4 * 8


def test_the_end_of_text_ends_the_answer_and_frees_the_slot():
    model = ScriptedModel([4, 5, 6, 0, 7, 7], vocab_size=10, stop_token_ids=(0,))
    engine = toy_engine(model, num_slots=1)
    params = GenerationParams(max_tokens=20, policy="confidence", temperature=0.0)
    frames = run(engine, ([], params))[0]
    last = frames[-1]
    assert last.finish_reason is FinishReason.STOP
    assert tokens_of(frames) == {0: 4, 1: 5, 2: 6, 3: 0}
    assert last.usage is not None
    assert last.usage.completion_tokens == 4
    assert engine._scheduler.table.num_free == 1


def test_a_full_canvas_ends_with_length_and_the_end_of_text_can_be_ignored():
    model = ScriptedModel([4, 0, 6], vocab_size=10, stop_token_ids=(0,))
    params = GenerationParams(max_tokens=3, policy="confidence", temperature=0.0, ignore_eos=True)
    completion = toy_engine(model).generate([[]], params)[0]
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.token_ids == (4, 0, 6)


def test_frames_tell_every_step_from_the_empty_canvas_on():
    model = ScriptedModel([4, 5, 6, 7], vocab_size=10)
    params = GenerationParams(max_tokens=4, policy="confidence", steps=2, temperature=0.0)
    frames = run(toy_engine(model), ([], params))[0]
    assert [(frame.step, frame.masked, frame.tokens) for frame in frames] == [
        (0, 4, ()),
        (1, 2, ((0, 4), (1, 5))),
        (2, 0, ((2, 6), (3, 7))),
    ]
    assert {frame.steps for frame in frames} == {2}


def test_requests_wait_in_order_while_the_token_budget_is_spent():
    engine = toy_engine(hash_model(), num_slots=8, token_budget=50)
    params = GenerationParams(max_tokens=20, policy="random", seed=1)
    for _ in range(3):
        engine.add(engine.prepare([1] * 5, params))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (2, 1)


def test_what_can_never_fit_the_token_budget_is_refused_at_once():
    engine = toy_engine(hash_model(), token_budget=20)
    with pytest.raises(InvalidRequest, match="need 30 tokens in one forward"):
        engine.prepare([1] * 10, GenerationParams(max_tokens=20))


def test_a_full_queue_refuses():
    engine = toy_engine(hash_model(), num_slots=1, max_waiting=1)
    params = GenerationParams(max_tokens=4)
    engine.add(engine.prepare([1], params))
    with pytest.raises(QueueFull, match="1 requests are waiting already"):
        engine.add(engine.prepare([1], params))


class Flaky(HashModel):
    failing = False

    def denoise(self, ids: Tensor) -> Tensor:
        if self.failing:
            raise MemoryError("no room")
        return super().denoise(ids)


def test_a_failed_step_ends_its_batch_and_the_engine_goes_on():
    model = Flaky(vocab_size=40)
    engine = toy_engine(model)
    params = GenerationParams(max_tokens=4, seed=1)
    model.failing = True
    frames = run(engine, ([1], params), ([2], params))
    assert [each[-1].finish_reason for each in frames] == [FinishReason.ERROR] * 2
    assert "MemoryError: no room" in str(frames[0][-1].error)
    model.failing = False
    assert run(engine, ([1], params))[0][-1].finish_reason is FinishReason.LENGTH
    assert engine.failure is None
    assert engine._scheduler.table.num_free == engine.config.num_slots


def test_an_engine_that_keeps_failing_says_that_it_cannot_serve():
    model = Flaky(vocab_size=40)
    model.failing = True
    engine = toy_engine(model)
    params = GenerationParams(max_tokens=4, seed=1)
    for _ in range(3):
        run(engine, ([1], params))
    assert "3 steps in a row failed" in str(engine.failure)
    with pytest.raises(EngineFailure):
        engine.add(engine.prepare([1], params))


def test_generate_takes_more_prompts_than_may_wait_and_keeps_their_order():
    engine = toy_engine(hash_model(), num_slots=2, max_waiting=3)
    params = GenerationParams(max_tokens=6, seed=5)
    prompts = [[index] for index in range(12)]
    together = engine.generate(prompts, params)
    alone = [
        engine.generate([prompt], params.replace(seed=5 + index))[0]
        for index, prompt in enumerate(prompts)
    ]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


def test_random_aborts_leave_every_slot_free():
    engine = toy_engine(hash_model(), num_slots=4)
    rng = random.Random(0)
    live: list[str] = []
    for _ in range(200):
        request = engine.prepare([1], GenerationParams(max_tokens=rng.randint(1, 8)))
        engine.add(request)
        live.append(request.request_id)
        engine.step()
        if rng.random() < 0.5:
            engine.abort(live.pop(rng.randrange(len(live))))
    while not engine.is_idle:
        engine.step()
    assert engine._scheduler.table.num_free == 4
    assert sorted(engine._scheduler.table._free) == [0, 1, 2, 3]


def test_a_request_that_cannot_be_started_ends_alone_and_takes_no_slot(monkeypatch):
    engine = toy_engine(HashModel(vocab_size=12, context_length=64), num_slots=2)
    table = engine._scheduler.table
    set_bias = table._set_bias

    def broken(slot, bias):
        if bias:
            raise RuntimeError("no room")
        set_bias(slot, bias)

    monkeypatch.setattr(table, "_set_bias", broken)
    params = GenerationParams(max_tokens=4, seed=1)
    asks = [params.replace(logit_bias=((3, 1.0),)), params]
    requests = [engine.prepare([1, 2], each) for each in asks]
    for request in requests:
        engine.add(request)
    last = {}
    while not engine.is_idle:
        last |= {frame.request_id: frame for frame in engine.step()}
    failed, fine = (last[request.request_id] for request in requests)
    assert failed.finish_reason is FinishReason.ERROR
    assert "RuntimeError: no room" in failed.error
    assert fine.finish_reason is FinishReason.LENGTH
    assert table.num_free == 2
