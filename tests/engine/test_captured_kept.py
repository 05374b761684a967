"""Recorded forwards of requests that keep their keys: the tokens of eager and uncached ones."""

from __future__ import annotations

import random

import pytest
import torch

from diffusiongpt.engine import kernels
from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.captured import CapturedForward
from diffusiongpt.engine.draft import Draft
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.kept_segments import KeptShape, MaskedKept, VarlenKept
from diffusiongpt.engine.kernels import choose_kept, fit_buckets, new_shape, reads_ranges
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.pool import KeyPool

from recordings import DEVICES, StrictRecorder, answer_all, attend_by_loop
from tiny_models import CONTEXT_LENGTH, write_modernbert, write_qwen3

BLOCK_LENGTH = 8
CPU = torch.device("cpu")
WRITERS = {"modernbert": write_modernbert, "qwen3": write_qwen3}
SETTINGS = {"dtype": "float32", "num_slots": 6, "token_budget": 256}


@pytest.fixture(scope="module", params=list(WRITERS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    return WRITERS[request.param](path, block_length=BLOCK_LENGTH, seed=5)


def new_pool(num_positions=256, num_scratch=BLOCK_LENGTH):
    return KeyPool(
        num_positions,
        num_scratch=num_scratch,
        num_layers=1,
        num_heads=2,
        head_size=8,
        dtype=torch.float32,
        device=CPU,
    )


def poison(forward, plan, pool):
    """What is left over must be overwritten or unseen: of the pool, all but what requests keep;
    in scratch, which weights of 0 meet, numbers that are only wrong."""
    forward.buffers.ids.fill_(10**9)
    forward.buffers.position_ids.fill_(10**9)
    forward.buffers.hidden.fill_(torch.nan)
    for recording in forward.recordings.values():
        for name in ("_place", "_cells", "_cell", "_start", "_used", "_first", "_ends", "_starts"):
            if hasattr(recording.segments, name):
                getattr(recording.segments, name).fill_(-(10**6))
    kept = torch.zeros(pool.num_positions, dtype=torch.bool)
    for cache in plan.caches:
        if cache is not None and cache.room is not None:
            kept[cache.room.start : cache.room.start + cache.length] = True
    for buffers in pool.layers:
        for buffer in buffers:
            buffer[~kept] = torch.nan
            buffer[:BLOCK_LENGTH] = 1e4


def run_poisoned(monkeypatch, model):
    """Every replay from here on finds nothing but what it was given."""
    run = CapturedForward.run

    def run_it(self, ids, position_ids, plan, wanted):
        poison(self, plan, model.pool)
        return run(self, ids, position_ids, plan, wanted)

    monkeypatch.setattr(CapturedForward, "run", run_it)


@pytest.mark.parametrize("policy", ["entropy_bound", "ancestral", "remdm"])
@pytest.mark.parametrize("device", DEVICES)
def test_eager_captured_and_uncached_requests_get_the_same_tokens_though_neighbours_leave(
    folder, policy, device, monkeypatch
):
    answers = []
    for settings in ({"cache_blocks": False}, {"capture": False}, {"capture": True}):
        engine = Engine.from_pretrained(
            folder, device=device, prefix_cache_bytes=0, **SETTINGS, **settings
        )
        if engine.model.pool is not None:
            run_poisoned(monkeypatch, engine.model)
        answers.append(answer_all(engine, policy))
    assert any(tokens for _, tokens, _, _ in answers[0])
    assert answers[0] == answers[1] == answers[2]
    assert engine.forwards["captured"] > 5
    assert all(not count for way, count in engine.forwards.items() if way.startswith("eager_"))
    assert engine.model.pool.num_free == engine.config.token_budget * 4


@pytest.mark.parametrize("device", DEVICES)
def test_a_replay_is_bit_for_bit_the_unrecorded_forward_whatever_ran_before(
    folder, device, monkeypatch
):
    model = load_model(folder, dtype="float32", device=device)
    model.capture(largest=128, max_canvases=4, num_kept=400)
    run_poisoned(monkeypatch, model)
    for seed, lengths in enumerate([(8,), (40, 8, 16), (5,), (16, 16, 8, 24), (80, 40)]):
        caches = [SlotCache(100, room=model.pool.take(100)) for _ in lengths]
        for number, cache in enumerate(caches):
            cache.length = 8 * number
        plan = AttentionPlan(lengths=lengths, block_length=BLOCK_LENGTH, caches=tuple(caches))
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(6, 97, (1, sum(lengths)), generator=generator).to(device)
        positions = torch.cat(
            [
                torch.arange(cache.length, cache.length + length)
                for cache, length in zip(caches, lengths, strict=True)
            ]
        )[None].to(device)
        for keys, values in model.pool.layers:
            keys.normal_()
            values.normal_()
        kept = [[each.clone() for each in pair] for pair in model.pool.layers]
        hidden = model.backbone(ids, positions, plan)
        _restore(model.pool, kept)
        assert hidden.equal(_run_unrecorded(model, ids, positions, plan))
        _restore(model.pool, kept)
        with torch.inference_mode():
            eager = model._run(ids, positions, plan)
        torch.testing.assert_close(hidden, eager, rtol=1e-4, atol=1e-4)
        for cache in caches:
            cache.give_back()
    assert model.ways["captured"] == 5


def _restore(pool, kept):
    for pair, copies in zip(pool.layers, kept, strict=True):
        for buffer, copy in zip(pair, copies, strict=True):
            buffer.copy_(copy)


def _run_unrecorded(model, ids, positions, plan):
    """The same forward by fresh tensors, with no recording and no shared buffer but the pool."""
    recording = model.captured._find(plan)
    bucket = recording.segments.num_tokens
    segments = type(recording.segments)(
        bucket, recording.segments.num_pieces, recording.segments._shape
    )
    segments.load(plan.padded(bucket))
    padding = (0, bucket - plan.num_tokens)
    with torch.inference_mode():
        hidden = model._run(
            torch.nn.functional.pad(ids, padding),
            torch.nn.functional.pad(positions, padding),
            segments,
        )
    return hidden[: plan.num_tokens]


def test_what_is_recorded_never_waits_for_the_device(folder, monkeypatch):
    monkeypatch.setattr("diffusiongpt.engine.model.recorder_for", lambda device: StrictRecorder())
    model = load_model(folder, dtype="float32")
    model.capture(largest=128, max_canvases=4, num_kept=400)
    assert model.captured_attention == "mask"


def test_requests_that_begin_alike_share_what_recordings_computed(folder):
    params = GenerationParams(max_tokens=20, seed=4, temperature=0.7, ignore_eos=True)
    prompts = [[6 + 7 * index % 80 for index in range(length)] for length in (50, 47)]
    answers = []
    for capture in (False, True):
        engine = Engine.from_pretrained(folder, capture=capture, **SETTINGS)
        done = [engine.generate([prompt], params)[0] for prompt in prompts]
        answers.append([(each.token_ids, each.usage) for each in done])
    assert answers[1][1][1].cached_tokens == 40
    assert answers[0] == answers[1]


def test_what_recordings_cannot_hold_runs_eagerly_beside_them_with_the_same_tokens(folder):
    draft = Draft(tuple(range(20, 50)), strength=0.5)
    asks = [
        ([9] * 30, GenerationParams(max_tokens=30, seed=1, draft=draft)),  # looks at its draft
        ([9] * 30, GenerationParams(max_tokens=CONTEXT_LENGTH, seed=2)),  # longer than the context
        ([9] * 30, GenerationParams(max_tokens=30, seed=3, policy="wino")),  # casts shadows
        ([9] * 100, GenerationParams(max_tokens=8, seed=4)),  # more tokens than any recording
    ]
    answers = []
    for capture in (False, True):
        engine = Engine.from_pretrained(
            folder, capture=capture, **{**SETTINGS, "cache_budget": 256}
        )
        if capture:
            engine.model.capture(largest=64, max_canvases=6, num_kept=256)
            engine._scheduler.pool = engine.model.pool
        answers.append([engine.generate([prompt], params)[0].token_ids for prompt, params in asks])
    assert answers[0] == answers[1]
    for way in ("captured", "eager_uncached", "eager_shadows", "eager_tokens"):
        assert engine.forwards[way] > 0, way


def test_a_request_that_finds_no_place_in_the_pool_has_memory_of_its_own(folder):
    params = GenerationParams(max_tokens=20, seed=1, ignore_eos=True)
    prompts = [[7 + index] * 20 for index in range(4)]
    answers = []
    for capture in (False, True):
        engine = Engine.from_pretrained(folder, capture=capture, **SETTINGS)
        if capture:  # two of four fit
            engine.model.capture(largest=64, max_canvases=6, num_kept=100)
            engine._scheduler.pool = engine.model.pool
        answers.append([each.token_ids for each in engine.generate(prompts, params)])
    assert answers[0] == answers[1]
    assert engine.forwards["eager_cache"] > 0
    assert engine.model.pool.num_free == 100


def test_rooms_are_apart_and_what_is_given_back_is_one_piece_again():
    pool, draw, rooms = new_pool(200), random.Random(0), []
    for _ in range(500):
        if rooms and draw.random() < 0.5:
            rooms.pop(draw.randrange(len(rooms))).give_back()
        elif (room := pool.take(draw.randint(1, 60))) is not None:
            rooms.append(room)
        taken = sorted(
            place for room in rooms for place in range(room.start, room.start + room.length)
        )
        assert len(set(taken)) == len(taken) == 200 - pool.num_free
        assert not taken or (taken[0] >= BLOCK_LENGTH and taken[-1] < pool.num_positions)
    for room in rooms:
        room.give_back()
    assert pool.take(201) is None
    assert pool.take(200).start == BLOCK_LENGTH


def plans_of(pool):
    """Prompts and blocks, cut short or not, one or two block lengths, in rooms of any order."""
    caches = [SlotCache(60, room=pool.take(60)) for _ in range(4)]
    for cache, length in zip(caches, (0, 40, 16, 8), strict=True):
        cache.length = length
    first, second, third, last = caches
    return [
        AttentionPlan(lengths=(8,), block_length=8, caches=(second,)),
        AttentionPlan(lengths=(37, 16, 5), block_length=8, caches=(first, third, second)),
        AttentionPlan(lengths=(3, 12), block_lengths=(4, 8), caches=(last, third)),
        AttentionPlan(
            lengths=(16, 16, 16, 16), block_length=8, caches=(last, third, second, first)
        ),
    ]


@pytest.mark.parametrize("window", [None, 1, 5, 20])
@pytest.mark.parametrize("kind", [MaskedKept, VarlenKept])
def test_each_piece_sees_what_its_request_keeps_as_tiles_do(kind, window, monkeypatch):
    monkeypatch.setattr("diffusiongpt.engine.varlen._varlen", attend_by_loop)
    pool = new_pool()
    shape = KeptShape(pool=pool, shortest_block=4, longest_block=8, longest=64)
    segments = kind.of_tokens(64, 4, shape)
    for buffer in pool.layers[0]:
        buffer.normal_()
    for plan in plans_of(pool):
        query = torch.randn(1, 4, plan.num_tokens, 8)
        key, value = torch.randn(2, 1, 2, plan.num_tokens, 8)
        assert segments.way_of(plan) == "captured"
        segments.load(plan.padded(64))
        segments.begin()
        padded = [
            torch.nn.functional.pad(each, (0, 0, 0, 64 - plan.num_tokens))
            for each in (query, key, value)
        ]
        output = segments.attend(*padded, 0, 0.3, window)
        assert output.isfinite().all()
        expected = plan.attend(query, key, value, 0, 0.3, window)
        torch.testing.assert_close(output[:, : plan.num_tokens], expected)


@pytest.mark.parametrize("block_length", [3, 48, 256])
@pytest.mark.parametrize("kind", [MaskedKept, VarlenKept])
def test_padding_has_room_beside_blocks_of_any_length(kind, block_length):
    pool = new_pool(600, num_scratch=block_length)
    shape = KeptShape(
        pool=pool, shortest_block=block_length, longest_block=block_length, longest=512
    )
    caches = [SlotCache(512, room=pool.take(512))]
    segments = kind.of_tokens(2048, 1, shape)
    for length in (1, block_length, min(2 * block_length, 512), 500):
        plan = AttentionPlan(lengths=(length,), block_length=block_length, caches=tuple(caches))
        assert segments.way_of(plan) == "captured"
        segments.load(plan.padded(2048))


def test_the_kernel_is_varlen_where_it_was_seen_to_read_ranges(folder, monkeypatch):
    config = load_model(folder, dtype="float32").config
    monkeypatch.setattr("diffusiongpt.engine.varlen._varlen", attend_by_loop)
    assert reads_ranges(config, torch.float32, CPU)
    assert choose_kept(config, torch.float32, CPU) is MaskedKept  # no kernel on the CPU
    monkeypatch.setattr(kernels, "has_varlen", lambda *unused, **also: True)
    assert choose_kept(config, torch.float32, CPU) is VarlenKept

    def read_from_the_first(query, key, value, ends, starts, *rest, **options):
        return attend_by_loop(query, key, value, ends, torch.zeros_like(starts), *rest, **options)

    def refuse(*unused, **options):
        raise RuntimeError("seqused_k is not supported")

    for broken in (read_from_the_first, refuse):
        monkeypatch.setattr("diffusiongpt.engine.varlen._varlen", broken)
        assert choose_kept(config, torch.float32, CPU) is MaskedKept


def test_gathered_ranges_are_bounded(folder, monkeypatch):
    config = load_model(folder, dtype="float32").config
    shape = new_shape(config, 400, [BLOCK_LENGTH], dtype=torch.float32, device=CPU)
    needed = [MaskedKept.num_bytes(bucket, shape) for bucket in (64, 128)]
    monkeypatch.setattr(kernels, "_MOST_GATHERED", needed[0])
    assert fit_buckets(MaskedKept, (64, 128), shape) == (64,)
    assert fit_buckets(VarlenKept, (64, 128), shape) == (64, 128)
    monkeypatch.setattr(kernels, "_MOST_GATHERED", needed[0] - 1)
    monkeypatch.setattr("diffusiongpt.engine.assembly.captures_forwards", lambda *unused: True)
    with pytest.warns(RuntimeWarning, match="every forward runs eagerly"):
        engine = Engine.from_pretrained(folder, **SETTINGS)
    assert engine.model.pool is None
    with pytest.raises(LoadError, match=f"would gather {needed[0]} bytes of keys"):
        Engine.from_pretrained(folder, capture=True, **SETTINGS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("writer", list(WRITERS))
def test_on_cuda_in_sixteen_bits_ranges_are_read_by_varlen_as_gathered(tmp_path, writer):
    folder = WRITERS[writer](tmp_path, block_length=BLOCK_LENGTH)
    device = torch.device("cuda")
    config = load_model(folder, dtype="bfloat16", device="cuda").config
    assert reads_ranges(config, torch.bfloat16, device)
    engine = Engine.from_pretrained(folder, dtype="bfloat16", device="cuda", num_slots=6)
    assert engine.model.captured_attention == "varlen"
    answer_all(engine, "ancestral")
    assert engine.forwards["captured"] > 5
