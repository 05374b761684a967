"""Several steps until the host looks: the same answers, and nothing to wait for meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.utils._python_dispatch import _disable_current_modes

from diffusiongpt.engine.batch_facts import describe_batch
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.draft import Draft
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.layout import lay_out
from diffusiongpt.engine.params import EditParams, GenerationParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.step import denoise

from mixes import asks, frames_of, params_of, unnamed
from recordings import AsksNothing, CopiesNothing
from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from toy_models import HashModel, toy_engine

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(asks, min_size=1, max_size=5),
    st.integers(2, 5),
    st.sampled_from([(), (3, 7)]),
    st.sampled_from([None, 0, 2]),
)
def test_every_frame_is_the_same_in_rounds_of_any_length(mix, ticks, stops, aborted):
    """Ends of text in the middle of a round, blocks that end in it, neighbours that leave."""
    model = HashModel(vocab_size=32, stop_token_ids=stops)
    alone = toy_engine(model, num_slots=4)
    rounds = toy_engine(model, num_slots=4, ticks_per_round=ticks)
    assert unnamed(frames_of(rounds, mix, aborted)) == unnamed(frames_of(alone, mix, aborted))
    assert rounds._scheduler.table.num_free == 4


@pytest.mark.parametrize("ticks", [1, 3])
@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_edited_drafts_take_the_same_steps_in_rounds(ticks, strength):
    """A draft of which nothing is redone has no budget of steps, and is looked at all the same."""
    model = HashModel(vocab_size=32)
    draft = Draft(tuple(range(3, 17)), strength)
    mix = [
        ([1, 2], params_of("joint", 20, 6, draft=draft, edits=EditParams(threshold=0.2), seed=seed))
        for seed in range(3)
    ]
    expected = frames_of(toy_engine(model), mix)
    assert all(own[-1].usage.nfe > 0 for own in expected)
    assert unnamed(frames_of(toy_engine(model, ticks_per_round=ticks), mix)) == unnamed(expected)


def test_the_host_looks_once_a_round():
    params = GenerationParams(max_tokens=12, steps=12, policy="random", seed=1)
    looks = []
    for ticks in (1, 4):
        engine, count = toy_engine(HashModel(vocab_size=32), ticks_per_round=ticks), 0
        engine.add(engine.prepare([1, 2], params))
        while not engine.is_idle:
            engine.step()
            count += 1
        looks.append(count)
        assert engine.model.num_forwards == 12
    assert looks == [12, 3]


def test_a_round_is_no_longer_than_its_blocks():
    engine = toy_engine(HashModel(vocab_size=32), ticks_per_round=50)
    engine.generate([[1, 2]], GenerationParams(max_tokens=6, policy="random", block_length=3))
    assert engine.model.num_forwards == 6


def test_a_slot_that_waits_for_others_stays_as_it_is():
    engine = toy_engine(HashModel(vocab_size=32), ticks_per_round=4)
    for policy in ("random", "remdm", "joint", "stability", "credit"):
        engine.add(engine.prepare([1, 2], params_of(policy, 9, None, seed=3)))
    engine._ticker._admit()
    table, batch = engine._scheduler.table, list(engine._scheduler.running.values())
    facts = describe_batch(batch, num_tokens=0, whole_grid=True)
    going = torch.tensor([False, True, False, True, False])
    waiting = torch.tensor([each.slot for each in batch])[~going]
    buffers = [value for value in vars(table).values() if isinstance(value, Tensor)]
    before = [buffer[waiting].clone() for buffer in buffers]
    layout = lay_out(table, [each.window() for each in batch])
    commits = denoise(engine.model, engine._head, table, layout, facts, going).read()  # type: ignore[arg-type]
    for buffer, copy in zip(buffers, before, strict=True):
        inside = slice(None, table.canvas_capacity)
        assert buffer[waiting][:, inside].equal(copy[:, inside])
    assert set(commits.row.tolist()) <= {1, 3}
    assert len(commits.row) > 0
    assert commits.is_open.tolist() == going.tolist()


@contextmanager
def nothing_asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuses, while a step is under way, operations that wait, and numbers of the host. The
    forward itself is for `test_captured.py`."""
    ticker, backbone = engine._ticker, engine.model.backbone

    def forward(*given: Any) -> Tensor:
        with _disable_current_modes(), DisableTorchFunction():
            return backbone(*given)

    def strictly(*given: Any) -> Any:
        with AsksNothing(), CopiesNothing():
            return denoise(*given)

    monkeypatch.setattr(engine.model, "backbone", forward)
    monkeypatch.setattr("diffusiongpt.engine.round.denoise", strictly)
    yield
    assert ticker.failure is None


@pytest.mark.parametrize("policy", sorted(PRESETS))
def test_steps_are_started_without_waiting_for_the_device(policy, monkeypatch):
    engine = toy_engine(HashModel(vocab_size=32), ticks_per_round=4)
    fields = {"top_p": 0.9, "frequency_penalty": 0.5, "logit_bias": ((4, 1.0),), "logprobs": 2}
    mix = [([1, 2], params_of(policy, 9, 6, seed=3, **fields))]
    with nothing_asked(engine, monkeypatch):
        last = frames_of(engine, mix)[0][-1]
    assert last.finish_reason is FinishReason.LENGTH, last.error


def test_a_step_on_its_own_would_be_caught_waiting(monkeypatch):
    engine = toy_engine(HashModel(vocab_size=32))
    with nothing_asked(engine, monkeypatch):
        last = frames_of(engine, [([1], GenerationParams(max_tokens=4))])[0][-1]
    assert last.finish_reason is FinishReason.ERROR
    assert "asks the device" in str(last.error)


def test_a_round_that_fails_in_the_middle_ends_its_batch_and_the_engine_goes_on():
    class Failing(HashModel):
        def backbone(self, *given: Any) -> Tensor:
            if self.num_forwards == 2:
                self.num_forwards += 1
                raise MemoryError("no room")
            return super().backbone(*given)

    engine = toy_engine(Failing(vocab_size=32), num_slots=2, ticks_per_round=4)
    params = GenerationParams(max_tokens=8, policy="random", seed=1)
    first, second = frames_of(engine, [([1], params), ([2], params)])
    assert [first[-1].finish_reason, second[-1].finish_reason] == [FinishReason.ERROR] * 2
    assert engine._scheduler.table.num_free == 2
    assert engine.generate([[1]], params)[0].finish_reason is FinishReason.LENGTH


def test_constraints_decide_in_every_step_and_large_grids_are_not_computed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    folder = write_modernbert(tmp_path, vocab_size=VOCAB_SIZE, seed=3, section=section)
    write_tiny_tokenizer(folder)
    engine = Engine.from_pretrained(folder, dtype="float32", max_tokens=64, ticks_per_round=4)
    lengths = []
    steps = engine._ticker._denoise
    monkeypatch.setattr(
        engine._ticker, "_denoise", lambda batch: lengths.append(len(done := steps(batch))) or done
    )
    date = Constraint(kind="regex", source=r"\d{4}-\d{2}-\d{2}")
    done = engine.generate(["the cat"], GenerationParams(max_tokens=20, constraint=date, seed=1))
    assert len(done[0].text) == 10
    assert set(lengths) == {1}
    lengths.clear()
    engine.generate(["the cat"], GenerationParams(max_tokens=20, policy="random", seed=1))
    assert max(lengths) == 4
    lengths.clear()
    monkeypatch.setattr("diffusiongpt.engine.tick._MOST_CELLS", 19)
    engine.generate(["the cat"], GenerationParams(max_tokens=20, policy="random", seed=1))
    assert set(lengths) == {1}


@pytest.mark.parametrize("block_length", [None, 8])
def test_rounds_of_recorded_forwards_give_the_same_tokens(tmp_path, block_length):
    folder = write_modernbert(tmp_path, block_length=block_length)
    mix = [
        ([7 + index] * (5 + 9 * index), params_of(policy, 20, block_length, seed=index))
        for index, policy in enumerate(("entropy_bound", "ancestral", "remdm", "wino"))
    ]
    told = []
    for settings_ in ({}, {"capture": True, "ticks_per_round": 3}):
        engine = Engine.from_pretrained(folder, dtype="float32", token_budget=512, **settings_)
        frames = frames_of(engine, mix)
        told.append(
            [[(frame.step, frame.tokens, frame.remasked) for frame in each] for each in frames]
        )
    assert told[0] == told[1]
    assert engine.forwards["captured"] > 0


def test_a_round_has_at_least_one_step():
    with pytest.raises(LoadError, match="ticks_per_round must be at least 1, got 0"):
        toy_engine(HashModel(vocab_size=32), ticks_per_round=0)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("block_length", [None, 8])
def test_on_cuda_steps_are_started_without_waiting_for_the_device(
    tmp_path, block_length, monkeypatch
):
    folder = write_modernbert(tmp_path, block_length=block_length)
    mix = [
        ([7 + index] * (5 + 9 * index), params_of(policy, 20, block_length, seed=index))
        for index, policy in enumerate(("entropy_bound", "ancestral", "remdm", "wino"))
    ]
    settings_ = {"device": "cuda", "dtype": "float32", "token_budget": 512, "capture": True}
    one = Engine.from_pretrained(folder, **settings_)
    several = Engine.from_pretrained(folder, ticks_per_round=4, **settings_)
    several.generate([[7] * 9], GenerationParams(max_tokens=8))  # kernels load themselves

    def strictly(*given: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error" if given[4].whole_grid else "default")
        try:
            return denoise(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr("diffusiongpt.engine.round.denoise", strictly)
    told = [
        [[(frame.tokens, frame.error) for frame in each] for each in frames_of(engine, mix)]
        for engine in (one, several)
    ]
    assert told[0] == told[1]
