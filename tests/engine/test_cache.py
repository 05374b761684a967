"""The block cache is exact: the same tokens as recomputing the canvas, for less work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS

from tiny_models import CONTEXT_LENGTH, edit_config, write_modernbert, write_qwen3

BLOCK_LENGTH = 8


@pytest.fixture(scope="module", params=["modernbert", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    write = write_modernbert if request.param == "modernbert" else write_qwen3
    write(path, block_length=BLOCK_LENGTH, seed=5)
    config = json.loads((path / "config.json").read_text())
    return edit_config(path, diffusion={**config["diffusion"], "can_edit": True})


@pytest.fixture(scope="module")
def engines(folder: Path) -> tuple[Engine, Engine]:
    common = {"dtype": "float32", "max_tokens": 256, "num_slots": 8}
    return (
        Engine.from_pretrained(folder, **common),
        Engine.from_pretrained(folder, cache_blocks=False, **common),
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(folder, dtype="float32")


def prompt_of(length: int) -> list[int]:
    return [6 + 7 * index % 80 for index in range(length)]


def run(engine: Engine, asks: list[tuple[int, GenerationParams]]) -> list[tuple[int, ...]]:
    """The tokens of requests that run together."""
    requests = [engine.prepare(prompt_of(length), params) for length, params in asks]
    tokens: dict[str, dict[int, int]] = {request.request_id: {} for request in requests}
    for request in requests:
        engine.add(request)
    while not engine.is_idle:
        for frame in engine.step():
            tokens[frame.request_id].update(dict(frame.tokens))
    return [tuple(tokens[r.request_id][p] for p in sorted(tokens[r.request_id])) for r in requests]


def params_of(policy: str, max_tokens: int, **fields: object) -> GenerationParams:
    steps = 2 * max_tokens if PRESETS[policy].tosses else None
    return GenerationParams(policy=policy, max_tokens=max_tokens, steps=steps, **fields)  # type: ignore[arg-type]


asks = st.tuples(
    st.integers(1, 40),
    st.builds(
        params_of,
        max_tokens=st.integers(1, 60),
        policy=st.sampled_from(sorted(PRESETS)),
        temperature=st.sampled_from([0.0, 0.8]),
        seed=st.integers(0, 99),
        ignore_eos=st.booleans(),
    ),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(asks, min_size=1, max_size=6))
def test_cached_and_recomputed_answers_are_the_same(engines, mix):
    cached, recomputed = engines
    assert run(cached, mix) == run(recomputed, mix)


def test_a_prompt_that_begins_alike_is_not_computed_again_and_gives_the_same_tokens(
    folder, engines
):
    engine = Engine.from_pretrained(folder, dtype="float32")
    params = GenerationParams(max_tokens=20, seed=4, temperature=0.7, ignore_eos=True)
    first, second = (
        engine.generate([prompt_of(50)], params),
        engine.generate([prompt_of(47)], params),
    )
    assert (first[0].usage.cached_tokens, second[0].usage.cached_tokens) == (0, 40)
    assert second[0].token_ids == run(engines[1], [(47, params)])[0]


def test_a_canvas_beyond_the_context_is_recomputed_and_the_same(engines):
    long = [(9, GenerationParams(max_tokens=CONTEXT_LENGTH + 30, seed=3, temperature=0.0))]
    cached, recomputed = engines
    assert run(cached, long) == run(recomputed, long)


def test_blocks_fed_one_after_another_equal_the_dense_block_mask(model):
    length = 5 * BLOCK_LENGTH
    ids = torch.tensor(prompt_of(length))[None]
    positions = torch.arange(length)[None]
    whole = AttentionPlan(lengths=(length,), block_length=BLOCK_LENGTH)
    expected = model.backbone(ids, positions, whole)
    cache = SlotCache(length)
    parts = []
    for start, stop in ((0, 16), (16, 24), (24, 40)):
        plan = AttentionPlan(lengths=(stop - start,), block_length=BLOCK_LENGTH, caches=(cache,))
        parts.append(model.backbone(ids[:, start:stop], positions[:, start:stop], plan))
        cache.length = stop
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-5, atol=1e-5)


def test_after_the_prompt_a_step_computes_at_most_two_blocks(folder, monkeypatch):
    engine = Engine.from_pretrained(folder, dtype="float32", prefix_cache_bytes=0)
    computed = []
    backbone = engine._model.backbone

    def count(ids, position_ids, plan, wanted=None):
        computed.append(ids.shape[1])
        return backbone(ids, position_ids, plan, wanted)

    monkeypatch.setattr(engine._model, "backbone", count)
    run(engine, [(50, GenerationParams(max_tokens=60, seed=1, ignore_eos=True))])
    assert computed[0] == 56
    assert max(computed[1:]) <= 2 * BLOCK_LENGTH
    assert computed.count(BLOCK_LENGTH) > len(computed) // 2


def test_a_cache_holds_no_more_than_its_canvas():
    cache = SlotCache(16)
    key = torch.zeros(1, 2, 8, 4)
    cache.extend(0, key, key)
    assert cache.num_bytes == 2 * 2 * 16 * 4 * 4


def test_a_plan_needs_a_cache_for_every_segment_or_none():
    with pytest.raises(ValueError, match="2 segments have 1 caches"):
        AttentionPlan(lengths=(3, 4), caches=(None,))
