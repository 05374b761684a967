"""Recorded forwards: what an eager forward gives, and nothing of the forward before."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from diffusiongpt.engine import captured as captured_module
from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.captured import CapturedForward, GraphRecorder, RunAgain, bucket_ladder
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.kernels import choose_segments
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.segments import MaskedSegments, VarlenSegments

from recordings import DEVICES, AsksNothing, StrictRecorder, answer_all, attend_by_loop
from tiny_models import write_modernbert, write_qwen3

# Several buckets, one canvas and many, a full bucket, and the first mix again at the end.
MIXES = ((5, 30, 17), (64,), (1, 1, 1, 1), (100, 3), (128,), (2,), (40, 40, 40), (5, 30, 17))
WRITERS = {"modernbert": write_modernbert, "qwen3": write_qwen3}


@pytest.fixture(scope="module", params=[(name, block) for name in WRITERS for block in (None, 8)])
def folder(request, tmp_path_factory):
    name, block_length = request.param
    return WRITERS[name](tmp_path_factory.mktemp(name), block_length=block_length)


def load_captured(folder, device, **limits):
    model = load_model(folder, dtype="float32", device=device)
    model.capture(**{"largest": 128, "max_canvases": 4, **limits})
    return model


def inputs_of(model, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, model.vocab_size, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return ids.to(model.device), positions.to(model.device), model.plan(*lengths)


def poison(forward):
    """What is left over must be overwritten: ids would be refused, hidden states show."""
    forward.buffers.ids.fill_(10**9)
    forward.buffers.position_ids.fill_(10**9)
    forward.buffers.hidden.fill_(torch.nan)
    for recording in forward.recordings.values():
        for name in ("_segment", "_block", "_ends"):
            if hasattr(recording.segments, name):
                getattr(recording.segments, name).fill_(-7)


def run_unrecorded(model, bucket, ids, positions, plan):
    """The same forward in fresh memory, with no recording and no shared buffer."""
    segments = type(model.captured.recordings[bucket].segments)(bucket, 64, model.device)
    segments.load(plan.padded(bucket))
    padding = (0, bucket - plan.num_tokens)
    with torch.inference_mode():
        hidden = model._run(
            torch.nn.functional.pad(ids, padding),
            torch.nn.functional.pad(positions, padding),
            segments,
        )
    return hidden[: plan.num_tokens]


@pytest.mark.parametrize("device", DEVICES)
def test_a_replay_is_bit_for_bit_the_unrecorded_forward_whatever_ran_before(folder, device):
    model = load_captured(folder, device)
    eager = load_model(folder, dtype="float32", device=device)
    kept = []
    for seed, lengths in enumerate(MIXES):
        ids, positions, plan = inputs_of(model, lengths, seed)
        poison(model.captured)
        hidden = model.backbone(ids, positions, plan)
        bucket = 64 if plan.num_tokens <= 64 else 128
        assert hidden.equal(run_unrecorded(model, bucket, ids, positions, plan))
        torch.testing.assert_close(hidden, eager.backbone(ids, positions, plan))
        wanted = torch.tensor([plan.num_tokens - 1, 0], device=device)
        poison(model.captured)
        assert model.backbone(ids, positions, plan, wanted).equal(hidden[wanted])
        kept.append((hidden, hidden.clone()))
    # Later replays changed nothing that was handed out before.
    assert all(hidden.equal(copy) for hidden, copy in kept)
    assert model.ways["captured"] == 2 * len(MIXES)


@pytest.mark.parametrize("device", DEVICES)
def test_a_canvas_is_alone_in_any_company(folder, device):
    model = load_captured(folder, device)
    ids, positions, _ = inputs_of(model, (20,))
    alone = model.backbone(ids, positions, model.plan(20))
    other, other_positions, _ = inputs_of(model, (30,), seed=1)
    both = model.backbone(
        torch.cat([other, ids], dim=1),
        torch.cat([other_positions, positions], dim=1),
        model.plan(30, 20),
    )
    torch.testing.assert_close(both[30:], alone)


def test_what_is_recorded_never_waits_for_the_device(folder, monkeypatch):
    with pytest.raises(AssertionError, match="asks the device"), AsksNothing():
        torch.ones(1).item()
    monkeypatch.setattr("diffusiongpt.engine.model.recorder_for", lambda device: StrictRecorder())
    load_captured(folder, "cpu")


def test_a_forward_that_no_recording_holds_runs_eagerly_and_is_counted(tmp_path):
    folder = write_modernbert(tmp_path)
    model, eager = load_captured(folder, "cpu"), load_model(folder, dtype="float32")
    for lengths in ((129,), (2,) * 5):
        given = inputs_of(model, lengths)
        assert model.backbone(*given).equal(eager.backbone(*given))
    assert {way: count for way, count in model.ways.items() if count} == {
        "eager": 2,  # the leak check, at loading
        "eager_tokens": 1,
        "eager_canvases": 1,
    }
    forward = model.captured
    shadowed = AttentionPlan(lengths=(3, 2), shadows=(None, 0)).padded(64)
    assert forward.way_of(shadowed) == "eager_shadows"
    assert forward.way_of(AttentionPlan(lengths=(3,), block_length=2)) == "captured"
    varlen = VarlenSegments(64, 8, torch.device("cpu"))
    assert varlen.way_of(AttentionPlan(lengths=(3, 4), block_lengths=(2, None))) == "eager_blocks"
    assert varlen.way_of(AttentionPlan(lengths=(3, 4), block_lengths=(None, None))) == "captured"


@pytest.mark.parametrize("policy", ["ancestral", "confidence", "remdm"])
@pytest.mark.parametrize("device", DEVICES)
def test_requests_get_the_same_tokens_from_recordings_though_neighbours_leave(
    tmp_path, policy, device, monkeypatch
):
    folder = write_modernbert(tmp_path)
    settings = {"dtype": "float32", "device": device, "num_slots": 6, "token_budget": 512}
    answers = []
    run = CapturedForward.run

    def run_poisoned(self, *args):
        poison(self)
        return run(self, *args)

    monkeypatch.setattr(CapturedForward, "run", run_poisoned)
    for capture in (False, True):
        engine = Engine.from_pretrained(folder, capture=capture, **settings)
        answers.append(answer_all(engine, policy))
        assert (engine.forwards["captured"] > 0) == capture
        assert engine.forwards["eager_canvases"] == 0
    assert any(tokens for _, tokens, _, _ in answers[0])
    assert answers[0] == answers[1]


def test_the_ladder_is_short_and_holds_the_limit():
    assert bucket_ladder(100) == (64, 128)
    assert bucket_ladder(64) == bucket_ladder(1) == (64,)
    assert bucket_ladder(10**6)[-1] == captured_module.LARGEST_BUCKET
    assert all(larger == 2 * smaller for smaller, larger in pairwise(bucket_ladder(10**6)))


def test_each_bucket_is_recorded_once_the_largest_first(tmp_path, monkeypatch):
    recorded = []

    class Noting(RunAgain):
        def record(self, run):
            recorded.append(run)
            return super().record(run)

    monkeypatch.setattr("diffusiongpt.engine.model.recorder_for", lambda device: Noting())
    model = load_captured(write_modernbert(tmp_path), "cpu", largest=256)
    for lengths in MIXES:
        model.backbone(*inputs_of(model, lengths))
    assert list(model.captured.recordings) == [256, 128, 64]
    assert len(recorded) == 3


def test_what_cannot_be_recorded_is_refused_in_a_sentence(tmp_path, monkeypatch):
    folder = write_modernbert(tmp_path)

    def broken(*unused):
        raise RuntimeError("operation not permitted\nand much more")

    monkeypatch.setattr(RunAgain, "record", broken)
    expected = r"could not be recorded on this cpu: RuntimeError: operation not permitted$"
    with pytest.raises(LoadError, match=expected):
        Engine.from_pretrained(folder, dtype="float32", capture=True)
    monkeypatch.setattr("diffusiongpt.engine.assembly.captures_forwards", lambda *unused: True)
    with pytest.warns(RuntimeWarning, match="every forward runs eagerly"):
        engine = Engine.from_pretrained(folder, dtype="float32")
    engine.generate([[7]], GenerationParams(max_tokens=4, seed=1))
    assert engine.forwards["eager"] > 0
    with pytest.raises(LoadError, match="capture must be off or absent when deterministic"):
        Engine.from_pretrained(folder, capture=True, deterministic=True)


def test_the_kernel_is_the_mask_where_varlen_cannot_be(tmp_path):
    model = load_model(write_modernbert(tmp_path), dtype="float32")
    cpu = torch.device("cpu")
    assert choose_segments(model.config, torch.bfloat16, cpu, has_blocks=False) is MaskedSegments


def test_the_kernel_is_varlen_for_sixteen_bits_without_blocks(tmp_path, monkeypatch):
    config = load_model(write_modernbert(tmp_path), dtype="float32").config
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_segments(config, torch.bfloat16, cuda, has_blocks=False) is VarlenSegments
    assert choose_segments(config, torch.bfloat16, cuda, has_blocks=True) is MaskedSegments
    assert choose_segments(config, torch.float32, cuda, has_blocks=False) is MaskedSegments
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_segments(config, torch.bfloat16, cuda, has_blocks=False) is MaskedSegments


@pytest.mark.parametrize("window", [None, 1, 5])
def test_varlen_is_told_of_the_segments_and_the_window_that_the_mask_shows(window, monkeypatch):
    monkeypatch.setattr("diffusiongpt.engine.varlen._varlen", attend_by_loop)
    query = torch.randn(1, 4, 64, 32)
    key, value = torch.randn(2, 1, 2, 64, 32)
    outputs = []
    for kind in (VarlenSegments, MaskedSegments):
        segments = kind(64, 8, torch.device("cpu"))
        segments.load(AttentionPlan(lengths=(1,) * 7).padded(64))
        segments.load(AttentionPlan(lengths=(5, 30, 17)).padded(64))
        outputs.append(segments.attend(query, key, value, 0, 0.1, window))
    torch.testing.assert_close(*outputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("window", [None, 5])
def test_varlen_attends_as_the_mask_does(window):
    device = torch.device("cuda")
    plan = AttentionPlan(lengths=(5, 30, 17)).padded(64)
    query = torch.randn(1, 4, 64, 32, device=device, dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, 64, 32, device=device, dtype=torch.bfloat16)
    outputs = []
    for kind, where in ((VarlenSegments, device), (MaskedSegments, torch.device("cpu"))):
        segments = kind(64, 8, where)
        segments.load(plan)
        heads = (each.to(where) for each in (query, key, value))
        outputs.append(segments.attend(*heads, 0, 32**-0.5, window).cpu().float())
    torch.testing.assert_close(*outputs, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recording_on_cuda_is_a_graph(tmp_path):
    recorder = GraphRecorder(torch.device("cuda"))
    given, taken = torch.zeros(3, device="cuda"), torch.zeros(3, device="cuda")
    replay = recorder.record(lambda: taken.copy_(given + 1))
    given.fill_(4)
    replay()
    assert taken.tolist() == [5, 5, 5]
