"""Approximate caches of bidirectional models: when asked for, and just as stale as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS

from tiny_models import CONTEXT_LENGTH, write_modernbert, write_qwen3
from toy_models import ToyModel, toy_engine

APPROXIMATIONS = ("prefix", "dual")
MODULUS = 1009


class TwoLayerModel(ToyModel):
    """A bidirectional toy of two layers in whole numbers, so that nothing rounds.

    Layer 0 keeps the token ids, layer 1 each token mixed with all that its layer 0 saw; logits
    depend on all that layer 1 saw. A kept key of layer 1 is stale as soon as any token changes.
    """

    def backbone(
        self,
        ids: Tensor,
        position_ids: Tensor,
        plan: AttentionPlan,
        wanted: Tensor | None = None,
    ) -> Tensor:
        self.num_forwards += 1
        self.num_tokens += ids.shape[1]
        segments = zip(
            ids[0].split(list(plan.lengths)),
            position_ids[0].split(list(plan.lengths)),
            plan.caches or (None,) * len(plan.lengths),
            strict=True,
        )
        hidden = torch.cat([self._segment(*segment) for segment in segments])
        return hidden if wanted is None else hidden[wanted]

    def _segment(self, ids: Tensor, places: Tensor, cache: SlotCache | None) -> Tensor:
        inner = self._seen(cache, 0, ids)
        mixed = mix(ids, places, inner)
        return self.logits_of(places, self._seen(cache, 1, mixed))

    def _seen(self, cache: SlotCache | None, layer: int, keys: Tensor) -> Tensor:
        if cache is None:
            return keys
        heads = keys.view(1, 1, -1, 1)
        return cache.extend(layer, heads, heads)[0].flatten()

    def logits_of(self, places: Tensor, seen: Tensor) -> Tensor:
        grid = places[:, None] * 37.0 + torch.arange(self.vocab_size) * 11.0
        weight = (seen * torch.arange(1, len(seen) + 1)).sum() % MODULUS
        return (3.0 * torch.sin(grid.double() + weight)).float()


def mix(ids: Tensor, places: Tensor, seen: Tensor) -> Tensor:
    """Keys of layer 1: (L,) tokens at `places`, each with the sum of all that layer 0 saw."""
    whole = (seen * torch.arange(3, 3 + len(seen))).sum()
    return (ids * (places + 5) + whole) % MODULUS


def two_layers(**fields: object) -> TwoLayerModel:
    return TwoLayerModel(vocab_size=40, context_length=64, **fields)  # type: ignore[arg-type]


def plain_loop(
    cache: str, prompt: list[int], max_tokens: int, steps: int, block_length: int, *, lead: int
) -> list[int]:
    """Greedy low-confidence decoding with stale keys, one canvas, as the paper's listing has it."""
    model = two_layers()
    ids = torch.tensor(prompt + [model.mask_token_id] * max_tokens)
    places = torch.arange(len(ids))
    start = len(prompt)
    per_block = steps * block_length // max_tokens
    for begin in range(start, len(ids), block_length):
        end = begin + block_length
        for step in range(per_block):
            if step == 0:
                keys = mix(ids, places, ids)
            else:
                fresh = slice(max(begin - lead, 0), end if cache == "dual" else len(ids))
                keys[fresh] = mix(ids[fresh], places[fresh], ids)
            logits = model.logits_of(places, keys)
            if lead:
                logits = torch.cat([logits[:1], logits[:-1]])
            logits[:, model.mask_token_id] = -torch.inf
            confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
            masked = (ids == model.mask_token_id) & (places >= begin) & (places < end)
            count = -(-int(masked.sum()) // (per_block - step))
            best = confidence.masked_fill(~masked, -1.0).topk(count).indices
            ids[best] = predicted[best]
    return ids[start:].tolist()


@pytest.mark.parametrize("lead", [0, 1], ids=["plain", "logit_shift"])
@pytest.mark.parametrize(("steps", "block_length"), [(24, 24), (6, 24), (24, 8), (6, 8), (3, 8)])
@pytest.mark.parametrize("cache", APPROXIMATIONS)
def test_an_approximation_equals_the_plain_loop_with_stale_keys(
    cache: str, steps: int, block_length: int, lead: int
):
    prompt = [1, 5, 9]
    params = GenerationParams(
        max_tokens=24,
        policy="confidence",
        steps=steps,
        block_length=block_length,
        temperature=0.0,
        cache=cache,  # type: ignore[arg-type]
    )
    completion = toy_engine(two_layers(logit_shift=bool(lead))).generate([prompt], params)[0]
    expected = plain_loop(cache, prompt, 24, steps, block_length, lead=lead)
    assert list(completion.token_ids) == expected
    if steps == 24:
        # The toy notices: with fresh keys the answer is another one.
        fresh = toy_engine(two_layers(logit_shift=bool(lead)))
        exact = fresh.generate([prompt], params.replace(cache="off"))[0]
        assert completion.token_ids != exact.token_ids


@pytest.mark.parametrize(("cache", "later"), [("off", 44), ("prefix", 24), ("dual", 8)])
def test_later_steps_of_a_block_compute_what_is_not_kept(monkeypatch, cache, later):
    engine = toy_engine(two_layers())
    computed = []
    backbone = engine._model.backbone

    def count(ids, position_ids, plan, wanted=None):
        computed.append(ids.shape[1])
        return backbone(ids, position_ids, plan, wanted)

    monkeypatch.setattr(engine._model, "backbone", count)
    params = GenerationParams(
        max_tokens=24, policy="confidence", steps=9, block_length=8, cache=cache
    )
    engine.generate([[1] * 20], params)
    assert computed[:4] == [44, later, later, 44]
    assert computed[4] == {"off": 44, "prefix": 16, "dual": 8}[cache]


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], GenerationParams]:
    max_tokens = draw(st.integers(1, 40))
    policy = draw(st.sampled_from(sorted(PRESETS)))
    caches = ["off"] if PRESETS[policy].casts_shadows else ["off", "prefix", "dual"]
    return draw(st.lists(st.integers(0, 38), max_size=20)), GenerationParams(
        max_tokens=max_tokens,
        policy=policy,
        steps=2 * max_tokens if PRESETS[policy].tosses else None,
        block_length=draw(st.sampled_from([0, 4, 8])),
        temperature=draw(st.sampled_from([0.0, 0.7])),
        cache=draw(st.sampled_from(caches)),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=8))
def test_caches_of_neighbours_change_nothing(mix: list[tuple[list[int], GenerationParams]]):
    engine = toy_engine(two_layers(), num_slots=4)
    prepared = [engine.prepare(*request) for request in mix]
    tokens: dict[str, dict[int, int]] = {each.request_id: {} for each in prepared}
    for each in prepared:
        engine.add(each)
    while not engine.is_idle:
        for frame in engine.step():
            tokens[frame.request_id].update(frame.tokens)
    for request, together in zip(mix, tokens.values(), strict=True):
        alone = toy_engine(two_layers()).generate([request[0]], request[1])[0]
        assert [together[position] for position in sorted(together)] == list(alone.token_ids)


@pytest.fixture(scope="module", params=["modernbert", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    return (write_modernbert if request.param == "modernbert" else write_qwen3)(path, seed=5)


def prompt_of(length: int) -> list[int]:
    return [6 + 7 * index % 80 for index in range(length)]


@pytest.mark.parametrize("cache", APPROXIMATIONS)
def test_a_window_of_an_unchanged_canvas_gets_the_hidden_states_of_the_whole(folder, cache):
    # Longer than a tile on either side, and far longer than ModernBERT's local window.
    model = load_model(folder, dtype="float32")
    ids = torch.tensor([prompt_of(CONTEXT_LENGTH)])
    positions = torch.arange(CONTEXT_LENGTH)[None]
    kept = SlotCache(CONTEXT_LENGTH, cache)
    plan = AttentionPlan(lengths=(CONTEXT_LENGTH,), caches=(kept,))
    whole = model.backbone(ids, positions, plan)
    torch.testing.assert_close(whole, model.backbone(ids, positions, model.plan(CONTEXT_LENGTH)))
    kept.note_forward(40, 16)
    stop = 56 if cache == "dual" else CONTEXT_LENGTH
    plan = AttentionPlan(lengths=(stop - 40,), caches=(kept,))
    part = model.backbone(ids[:, 40:stop], positions[:, 40:stop], plan)
    torch.testing.assert_close(part, whole[40:stop], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cache", APPROXIMATIONS)
def test_with_one_step_a_block_nothing_is_stale(folder, cache):
    engine = Engine.from_pretrained(folder, dtype="float32")
    params = GenerationParams(
        max_tokens=40, policy="confidence", steps=5, block_length=8, seed=2, ignore_eos=True
    )
    prompts = [prompt_of(length) for length in (0, 5, 30)]
    exact = engine.generate(prompts, params)
    approximate = engine.generate(prompts, params.replace(cache=cache))
    assert [each.token_ids for each in exact] == [each.token_ids for each in approximate]


@pytest.mark.parametrize("cache", APPROXIMATIONS)
def test_holes_are_filled_with_a_cache_too(cache):
    prompt = Infill([1] * 9, Hole(6), [2] * 5, Hole(7), [3] * 4)
    params = GenerationParams(policy="confidence", block_length=6, cache=cache, temperature=0.0)
    filled = toy_engine(two_layers()).generate([prompt], params)[0]
    assert len(filled.token_ids) == 6 + 5 + 7
    assert list(filled.token_ids[6:11]) == [2] * 5


def test_an_unknown_cache_is_refused():
    with pytest.raises(InvalidRequest, match="one of off, prefix, dual, got 'fast'"):
        GenerationParams(cache="fast")  # type: ignore[arg-type]


def test_an_approximation_of_what_is_exact_is_refused():
    engine = toy_engine(two_layers(block_length=8))
    with pytest.raises(InvalidRequest, match=r"toy is block-causal and keeps .* got 'dual'"):
        engine.prepare([1], GenerationParams(max_tokens=8, cache="dual"))
    engine.prepare([1], GenerationParams(max_tokens=8, cache="off"))


def test_a_cache_of_a_window_that_moves_is_refused():
    engine = toy_engine(two_layers())
    params = GenerationParams(max_tokens=70, block_length=8, cache="prefix")
    with pytest.raises(InvalidRequest, match="within the context of 64, got 73 tokens"):
        engine.prepare([1] * 3, params)


def test_nothing_is_approximated_unless_the_request_asks(tmp_path: Path):
    assert (
        toy_engine(two_layers()).prepare([1], GenerationParams(max_tokens=8)).params.cache == "off"
    )
    write_modernbert(tmp_path, section={"sampler": {"cache": "dual"}})
    with pytest.raises(LoadError, match="unknown key 'cache'"):
        load_model(tmp_path)
