"""Forwards that are not recorded: by the varlen kernel where it holds their plan, else by tiles."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from diffusiongpt.engine import kernels
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.params import GenerationParams

from recordings import attend_by_loop
from tiny_models import write_modernbert, write_qwen3

WRITERS = {"modernbert": write_modernbert, "qwen3": write_qwen3}
ASKS = [
    ([7, 8, 9], GenerationParams(max_tokens=20, seed=1, ignore_eos=True)),
    ([10] * 40, GenerationParams(max_tokens=12, seed=2, policy="ancestral", ignore_eos=True)),
    ([11] * 9, GenerationParams(max_tokens=16, seed=3, policy="wino", ignore_eos=True)),
]


@pytest.fixture
def varlen_calls(monkeypatch):
    """The kernel on the CPU, as a loop that counts its calls by whether ranges are used."""
    calls: Counter[str] = Counter()

    def count(*given, **options):
        calls["ranges" if "seqused_k" in options else "segments"] += 1
        return attend_by_loop(*given, **options)

    monkeypatch.setattr("diffusiongpt.engine.varlen._varlen", count)
    monkeypatch.setattr(kernels, "has_varlen", lambda *unused, **also: True)
    return calls


def answers_of(engine, asks=ASKS):
    requests = [engine.prepare(*ask) for ask in asks]
    frames = engine._run(requests)
    return [[frame.tokens for frame in frames[request.request_id]] for request in requests]


@pytest.mark.parametrize("cache", ["off", "prefix"])
@pytest.mark.parametrize("name", list(WRITERS))
def test_requests_get_the_same_tokens_by_varlen_as_by_tiles(tmp_path, name, cache, request):
    folder = WRITERS[name](tmp_path)
    asks = [(prompt, params.replace(cache=cache)) for prompt, params in ASKS[:2]] + ASKS[2:]
    settings = {"dtype": "float32", "max_tokens": 64}
    by_tiles = answers_of(Engine.from_pretrained(folder, **settings), asks)
    calls = request.getfixturevalue("varlen_calls")
    assert answers_of(Engine.from_pretrained(folder, **settings), asks) == by_tiles
    assert calls["segments"] > 0
    assert calls["ranges"] == 0


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_prompt_larger_than_any_recording_is_read_into_the_pool_by_varlen(
    tmp_path, name, request
):
    folder = WRITERS[name](tmp_path, block_length=8)
    settings = {"dtype": "float32", "max_tokens": 64, "capture": True, "token_budget": 256}
    expected = answers_of(Engine.from_pretrained(folder, dtype="float32", max_tokens=64))
    calls = request.getfixturevalue("varlen_calls")
    engine = Engine.from_pretrained(folder, **settings)
    engine.model.capture(largest=64, max_canvases=32, num_kept=1024)
    engine._scheduler.pool = engine.model.pool
    recorded = calls["ranges"]
    assert answers_of(engine) == expected
    assert engine.model.captured_attention == "varlen"
    assert engine.forwards["eager_tokens"] + engine.forwards["eager_shadows"] > 0
    assert calls["ranges"] > recorded


def test_blocks_that_are_not_kept_go_by_tiles(tmp_path, varlen_calls):
    model = load_model(write_modernbert(tmp_path, block_length=8), dtype="float32")
    loaded = varlen_calls.total()
    model.logits([7, 8, 9] * 10)
    assert varlen_calls.total() == loaded == 0


def test_on_the_cpu_a_plan_attends_by_itself(tmp_path):
    model = load_model(write_modernbert(tmp_path), dtype="float32")
    attend = kernels.choose_eager(model.config, torch.bfloat16, torch.device("cpu"))
    plan = model.plan(3, 4)
    assert attend(plan, None) is plan


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", list(WRITERS))
def test_on_cuda_in_sixteen_bits_varlen_gives_the_hidden_states_of_tiles(
    tmp_path, name, monkeypatch
):
    folder = WRITERS[name](tmp_path)
    model = load_model(folder, dtype="bfloat16", device="cuda")
    lengths = (5, 30, 17)
    ids = torch.randint(6, 90, (1, sum(lengths)), device="cuda")
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to("cuda")
    by_varlen = model.backbone(ids, positions, model.plan(*lengths))
    monkeypatch.setattr(model, "_attend_eagerly", lambda plan, shape: plan)
    by_tiles = model.backbone(ids, positions, model.plan(*lengths))
    torch.testing.assert_close(by_varlen, by_tiles, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("block_length", [None, 8])
def test_on_cuda_a_deterministic_answer_is_the_same_in_any_company(tmp_path, block_length):
    folder = write_qwen3(tmp_path, block_length=block_length)
    settings = {"dtype": "bfloat16", "max_tokens": 64, "token_budget": 256}
    engine = Engine.from_pretrained(folder, device="cuda", deterministic=True, **settings)
    alone = [answers_of(engine, [ask])[0] for ask in ASKS]
    assert answers_of(engine) == alone
