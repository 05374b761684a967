"""A benchmark counts what was done, for any mix, and does the same work every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusiongpt.engine.bench import (
    Workload,
    _percentile,
    make_prompts,
    measure_matmul_rate,
    run_benchmark,
    run_round,
)
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import EngineFailure, InvalidRequest

from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

SECTION = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [0, 2, MASK]}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder: Path = tmp_path_factory.mktemp("model")
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=3, section=SECTION)
    return Engine.from_pretrained(write_tiny_tokenizer(folder), dtype="float32", num_slots=4)


def test_the_mix_is_every_policy_at_every_length(engine: Engine):
    workload = Workload(
        requests=8,
        prompt_tokens=10,
        max_tokens=(8, 24),
        policies=("random", None),
        repeats=2,
    )
    result = run_benchmark(engine, workload)
    kinds = [(row["policy"], row["max_tokens"], row["requests"]) for row in result["mix"]]
    assert kinds == [
        ("entropy_bound", 8, 2),
        ("entropy_bound", 24, 2),
        ("random", 8, 2),
        ("random", 24, 2),
    ]
    by_kind = {kind[:2]: row for kind, row in zip(kinds, result["mix"], strict=True)}
    for length in (8, 24):
        assert by_kind["random", length]["nfe"] == length
        assert by_kind["random", length]["tokens_per_forward"] == 1.0
        assert by_kind["entropy_bound", length]["nfe"] <= length
    total = result["total"]
    assert total["requests"] == 8
    tokens = 4 * (8 + 24)
    assert total["tokens_per_second"]["max"] == pytest.approx(tokens / result["seconds"]["min"])
    assert 0 < total["first_p50_s"] <= total["latency_p50_s"] <= total["latency_p95_s"]
    assert total["latency_p95_s"] <= result["seconds"]["max"]
    assert 0 < result["matmul_share"]["median"] < 1


def test_the_work_of_a_round_is_counted(engine: Engine):
    workload = Workload(requests=3, prompt_tokens=10, max_tokens=(6,), policies=("random",))
    prompts = make_prompts(engine, workload)
    done = run_round(engine, prompts, workload.params())
    assert (done.forwards, done.tokens, done.head_rows) == (6, 3 * 6 * 16, 3 * 6)
    flops = engine.model.linear_flops(done.tokens, done.head_rows)
    # Per layer: Wqkv, Wo, Wi (gated) and Wo of the feed-forward; the head is dense and decoder.
    per_token = 3 * (4 * 32 * 32 + 3 * 32 * 48)
    per_row = 32 * 32 + 32 * VOCAB_SIZE
    assert flops == 2 * (done.tokens * per_token + done.head_rows * per_row)


def test_prompts_follow_from_the_seed_and_have_their_length(engine: Engine, tmp_path: Path):
    bare = Engine.from_pretrained(write_modernbert(tmp_path), dtype="float32")
    for each in (engine, bare):
        one, same, other = (
            make_prompts(each, Workload(requests=3, prompt_tokens=300, seed=seed))
            for seed in (1, 1, 2)
        )
        assert one == same != other
        assert [len(prompt) for prompt in one] == [300] * 3
        assert one[0] != one[1]
        assert not set(one[0]) & set(each.model.never_emit_token_ids)


def test_what_cannot_run_is_refused_before_anything_starts(engine: Engine):
    for changes, words in (
        ({"requests": 0}, "requests must be at least 1, got 0"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"policies": ("best",)}, "policy must be one of"),
        ({"max_tokens": (8, 0)}, "max_tokens must be at least 1, got 0"),
        ({"prompt_tokens": 1000}, "leaves room for"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            run_benchmark(engine, Workload(**changes))
        assert engine.is_idle


def test_a_step_that_fails_ends_the_benchmark(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine.model, "backbone", fail)
    with pytest.raises(EngineFailure, match="no memory"):
        run_benchmark(engine, Workload(requests=1, max_tokens=(4,)))


def test_percentiles_are_values_that_were_measured():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [_percentile(values, share) for share in (0.0, 0.5, 0.95, 1.0)] == [1.0, 3.0, 5.0, 5.0]
    assert _percentile([7.0], 0.95) == 7.0


def test_the_ceiling_is_a_rate():
    assert measure_matmul_rate(torch.float32, torch.device("cpu"), repeats=1) > 1e8
