"""Steps recorded whole: the tokens of eager ones, from tensors that stay where they are."""

from __future__ import annotations

import json
import random

import pytest
import torch
from torch import Tensor

from diffusiongpt.engine import captured_step
from diffusiongpt.engine.batch_facts import describe_batch
from diffusiongpt.engine.captured import RunAgain
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.layout import lay_out
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS

from mixes import frames_of, params_of, unnamed
from recordings import DEVICES, TapeRecorder
from tiny_models import edit_config, write_modernbert, write_qwen3

SETTINGS = {"dtype": "float32", "num_slots": 6, "token_budget": 256}
POLICIES = sorted(PRESETS)


def write_model(folder, writer, block_length, logit_shift):
    """A model that may edit, too."""
    writer(folder, block_length=block_length, seed=5)
    section = json.loads((folder / "config.json").read_text())["diffusion"]
    return edit_config(folder, diffusion={**section, "can_edit": True, "logit_shift": logit_shift})


@pytest.fixture(
    scope="module",
    params=[
        (write_modernbert, None, False),
        (write_modernbert, 8, False),
        (write_qwen3, None, True),
        (write_qwen3, 8, False),
    ],
)
def folder(request, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), *request.param)


@pytest.fixture
def at_once(monkeypatch):
    """Kinds are recorded when they are first met."""
    monkeypatch.setattr(captured_step, "STEPS_BEFORE", 0)


def use_recorder(monkeypatch, recorder):
    monkeypatch.setattr("diffusiongpt.engine.model.recorder_for", lambda device: recorder)
    return recorder


def new_engine(folder, *, ticks=4, **settings):
    return Engine.from_pretrained(folder, ticks_per_round=ticks, **{**SETTINGS, **settings})


def draw_mix(draw, engine):
    """Some requests, and as many that have the same kinds of steps and nothing else of them."""
    causal = engine.info.attention == "block_causal"
    policies = [name for name in POLICIES if name != "wino" or not engine.info.logit_shift]
    first, second = [], []
    for _ in range(draw.randint(1, 3)):
        params = params_of(
            draw.choice(policies),
            draw.randint(3, 12),
            None if causal else draw.choice([None, 3, 8]),
            temperature=draw.choice([0.0, 0.8]),
            top_k=draw.choice([0, 5]),
            frequency_penalty=draw.choice([0.0, 0.7]),
            logprobs=draw.choice([None, 2]),
            watch=True,
        )
        for mix in (first, second):
            prompt = [draw.randint(6, 90) for _ in range(draw.randint(1, 20))]
            mix.append((prompt, params.replace(seed=draw.randint(0, 999))))
    return first, second


def told(engine, mix, aborted=None):
    """What comes out, but for numbers that may round otherwise."""
    return [
        [(each.step, each.tokens, each.remasked, each.finish_reason, each.error) for each in frames]
        for frames in frames_of(engine, mix, aborted)
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_replayed_steps_give_the_tokens_of_eager_ones_though_neighbours_leave(
    folder, device, at_once, monkeypatch
):
    eager = new_engine(folder, ticks=1, device=device, capture=False)
    if device == "cpu":
        use_recorder(monkeypatch, TapeRecorder())
    captured = new_engine(folder, device=device, capture=True)
    draw = random.Random(1)
    for aborted in (None, 0, 1):
        for mix in draw_mix(draw, eager):
            assert told(captured, mix, aborted) == told(eager, mix, aborted)
    assert captured.forwards["captured_step"] > 20
    assert captured._scheduler.table.num_free == SETTINGS["num_slots"]


def test_a_tape_gives_bit_for_bit_what_the_step_itself_gives_again(folder, at_once, monkeypatch):
    engines = []
    for recorder in (RunAgain(), TapeRecorder()):
        use_recorder(monkeypatch, recorder)
        engines.append(new_engine(folder, capture=True))
    for mix in draw_mix(random.Random(2), engines[0]):
        one, other = (unnamed(frames_of(engine, mix)) for engine in engines)
        assert one == other


def test_whoever_comes_and_goes_is_nothing_that_a_recording_knows(tmp_path, at_once, monkeypatch):
    """Replayed in other slots, at other lengths of prompts, windows and budgets of steps."""
    folder = write_qwen3(tmp_path, block_length=8)
    eager = new_engine(folder, ticks=1)
    recorder = use_recorder(monkeypatch, TapeRecorder())
    engine = new_engine(folder, capture=True)
    params = GenerationParams(max_tokens=16, policy="ancestral", seed=1, ignore_eos=True)
    mixes = [
        [([7 + 5 * turn] * (8 * turn + 8), params.replace(steps=steps, seed=turn))]
        for turn, steps in enumerate((16, 9, 4))
    ]
    mixes += [mixes[0] + mixes[1], mixes[2] + mixes[0]]
    forwards = len(recorder.tapes)
    assert [told(engine, mix) for mix in mixes] == [told(eager, mix) for mix in mixes]
    tapes = recorder.tapes[forwards:]
    assert len(tapes) < 10
    assert sum(tape.num_replays for tape in tapes) == engine.forwards["captured_step"] > 30


def test_requests_that_begin_alike_share_what_replayed_steps_computed(
    tmp_path, at_once, monkeypatch
):
    folder = write_modernbert(tmp_path, block_length=8)
    use_recorder(monkeypatch, TapeRecorder())
    params = GenerationParams(max_tokens=20, seed=4, temperature=0.7, ignore_eos=True)
    prompts = [[6 + 7 * index % 80 for index in range(length)] for length in (50, 47)]
    answers = []
    for settings in ({"ticks": 1, "capture": False}, {"capture": True}):
        engine = new_engine(folder, **settings)
        done = [engine.generate([prompt], params)[0] for prompt in prompts]
        answers.append([(each.token_ids, each.usage) for each in done])
    assert answers[1][1][1].cached_tokens == 40
    assert answers[0] == answers[1]
    assert engine.forwards["captured_step"] > 5


def test_nothing_changes_while_a_step_is_recorded(folder, at_once, monkeypatch):
    class Warm(RunAgain):
        def record(self, run):
            for _ in range(3):
                run()
            return super().record(run)

    use_recorder(monkeypatch, Warm())
    engine = new_engine(folder, capture=True)
    for policy in ("random", "remdm", "verify", "stability", "credit"):
        engine.add(engine.prepare([7, 8, 9], params_of(policy, 9, None, seed=3)))
    engine.step()
    table, batch = engine._scheduler.table, list(engine._scheduler.running.values())
    pool = (
        [] if engine.model.pool is None else [b for pair in engine.model.pool.layers for b in pair]
    )
    buffers = [value for value in vars(table).values() if isinstance(value, Tensor)]
    before = [buffer.clone() for buffer in buffers]
    kept = [buffer.clone() for buffer in pool]
    rows = engine.model.num_head_rows
    facts = describe_batch(batch, num_tokens=0, whole_grid=True)
    windows = [each.window() for each in batch]
    layout, other = lay_out(table, windows), lay_out(table, windows[::-1])
    laid_out = layout.copy()
    engine._ticker._captured_steps._recordings.clear()
    with torch.inference_mode():
        recorded = engine._ticker._captured_steps.find(layout, facts)
        assert not recorded.step(other, torch.zeros(len(batch), dtype=torch.bool)).meant.any()
    assert layout.of_slots.equal(laid_out.of_slots)
    inside = slice(None, table.canvas_capacity)
    for buffer, copy in zip(buffers, before, strict=True):
        assert buffer[:, inside].equal(copy[:, inside])
    rooms = [
        slice(each.cache.room.start, each.cache.room.start + each.cache.length)
        for each in batch
        if pool
    ]
    for buffer, copy in zip(pool, kept, strict=True):
        assert all(buffer[room].equal(copy[room]) for room in rooms)
    assert engine.model.num_head_rows - rows <= 3 * layout.plan.num_tokens  # of one replay


def test_replayed_work_is_counted_as_if_it_were_done_step_by_step(folder, at_once, monkeypatch):
    mix = [([7] * 9, params_of("entropy_bound", 14, None, seed=2, temperature=0.8, watch=True))]
    counts = []
    for capture in (False, True):
        engine = new_engine(folder, capture=capture)
        before = engine.model.num_forwards, engine.model.num_tokens, engine.model.num_head_rows
        frames_of(engine, mix)
        after = engine.model.num_forwards, engine.model.num_tokens, engine.model.num_head_rows
        counts.append([late - early for early, late in zip(before, after, strict=True)])
    assert engine.forwards["captured_step"] == counts[0][0]
    assert counts[0] == counts[1]


def test_a_kind_is_recorded_when_it_was_met_often_enough_and_few_are_kept(tmp_path, monkeypatch):
    folder = write_modernbert(tmp_path)
    monkeypatch.setattr(captured_step, "MOST_RECORDINGS", 2)
    recorder = use_recorder(monkeypatch, TapeRecorder())
    engine = new_engine(folder, ticks=2, capture=True)
    forwards, steps = len(recorder.tapes), captured_step.STEPS_BEFORE

    def answer(max_tokens):
        params = GenerationParams(max_tokens=max_tokens, policy="random", seed=1, ignore_eos=True)
        engine.generate([[7, 8]], params)
        return len(recorder.tapes) - forwards, engine.forwards["captured_step"]

    assert answer(steps) == (0, 0)
    assert answer(steps) == (1, steps)  # at once: it had as many already
    assert answer(steps + 1) == (2, steps + 1)
    assert answer(steps) == (2, 2 * steps + 1)
    assert answer(steps + 2) == (3, 2 * steps + 3)  # in place of the one not used for longest
    assert answer(steps) == (3, 3 * steps + 3)
    assert answer(steps + 1) == (4, 3 * steps + 4)


def test_a_step_that_cannot_be_recorded_runs_eagerly_and_says_so_once(
    tmp_path, at_once, monkeypatch
):
    folder = write_modernbert(tmp_path)
    params = GenerationParams(max_tokens=8, policy="random", seed=1)
    expected = new_engine(folder, ticks=1).generate([[7]], params)[0].token_ids
    engine = new_engine(folder, capture=True)

    def broken(*unused):
        raise RuntimeError("operation not permitted\nand much more")

    monkeypatch.setattr(RunAgain, "record", broken)
    with pytest.warns(RuntimeWarning, match=r"this cpu: RuntimeError: operation not permitted$"):
        assert engine.generate([[7]], params)[0].token_ids == expected
    assert engine.generate([[7]], params)[0].token_ids == expected
    assert engine.forwards["captured_step"] == 0
    assert engine.forwards["captured"] == 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_cuda_a_replay_waits_for_nothing_and_leaves_what_the_step_itself_would(
    folder, dtype, at_once, monkeypatch
):
    replayed = new_engine(folder, device="cuda", dtype=dtype, capture=True)
    use_recorder(monkeypatch, RunAgain())
    again = new_engine(folder, device="cuda", dtype=dtype, capture=True)
    step = captured_step.CapturedStep.step

    def strictly(*given):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(captured_step.CapturedStep, "step", strictly)
    for mix in draw_mix(random.Random(3), again):
        assert told(replayed, mix) == told(again, mix)
    assert replayed.forwards["captured_step"] == again.forwards["captured_step"] > 0


@pytest.mark.parametrize(
    ("settings", "fields", "way"),
    [
        ({"ticks": 1}, {}, "captured"),
        ({}, {"policy": "wino"}, "eager_shadows"),
        ({}, {"cache": "dual", "block_length": 4}, "eager_cache"),
        ({"capture": False}, {}, "eager"),
    ],
)
def test_steps_whose_host_or_forward_has_a_part_in_them_run_eagerly(
    tmp_path, at_once, settings, fields, way
):
    engine = new_engine(write_modernbert(tmp_path), **{"capture": True, **settings})
    engine.generate([[7]], GenerationParams(**{"max_tokens": 8, "policy": "random", **fields}))
    assert engine.forwards["captured_step"] == 0
    assert engine.forwards[way] > 0
