"""Committed tokens with their log-probabilities, and the hole lengths that they decide."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS

from toy_models import HashModel, MarkovModel, ToyModel, markov_chain, toy_engine


class RaggedChain(MarkovModel):
    """The chain's posterior for segments of any lengths."""

    _see_segments = ToyModel._see_segments

    def denoise(self, ids: Tensor) -> Tensor:
        return self.posterior(ids[None])[0]


def ring(states: int) -> Tensor:
    """A chain that goes round: each state is nearly always followed by the next one."""
    return 0.97 * torch.eye(states, dtype=torch.double).roll(1, dims=1) + 0.03 / states


def test_one_token_a_step_the_log_probabilities_add_up_to_the_chains_own():
    chain = RaggedChain(markov_chain(states=6, seed=2), context_length=24)
    engine = toy_engine(chain)
    for policy in ("random", "confidence", "entropy"):
        params = GenerationParams(max_tokens=12, policy=policy, temperature=1.0, seed=3)
        (done,) = engine.generate([[1]], params)
        path = [1, *done.token_ids]
        exact = sum(math.log(chain.transition[a, b]) for a, b in pairwise(path))
        assert sum(each.log_prob for each in done.tokens) == pytest.approx(exact, abs=1e-3)
        assert done.mean_log_prob == pytest.approx(exact / 12, abs=1e-4)


@pytest.mark.parametrize("policy", PRESETS)
def test_every_commit_has_its_step_and_its_place_in_the_order(policy: str):
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    params = GenerationParams(
        max_tokens=24,
        policy=policy,
        steps=24 if PRESETS[policy].tosses else None,
        block_length=8,
        temperature=1.0,
        seed=1,
        ignore_eos=True,
    )
    (done,) = engine.generate([[1, 2, 3]], params)
    assert [each.position for each in done.tokens] == list(range(24))
    assert tuple(each.token_id for each in done.tokens) == done.token_ids
    in_order = sorted(done.tokens, key=lambda each: each.order)
    steps = [each.step for each in in_order]
    assert steps == sorted(steps)
    if not PRESETS[policy].revises:
        assert [each.order for each in in_order] == list(range(24))
        assert len(set(steps)) == done.usage.steps
    assert all(each.log_prob <= 0.0 for each in done.tokens)
    for before, after in pairwise(in_order):
        assert before.step < after.step or before.position < after.position


def test_the_log_probability_is_that_of_the_canvas_before_the_step():
    model = HashModel(vocab_size=40, context_length=64)
    params = GenerationParams(max_tokens=6, policy="random", steps=3, temperature=1.0, seed=5)
    frames = list(toy_engine(model).stream([1, 2, 3], params))
    canvas = [1, 2, 3] + [model.mask_token_id] * 6
    for frame in frames:
        logits = model.logits(canvas)
        logits[:, model.mask_token_id] = -torch.inf
        expected = logits.log_softmax(dim=-1)
        for each in frame.committed:
            log_prob = float(expected[3 + each.position, each.token_id])
            assert each.log_prob == pytest.approx(log_prob, abs=1e-5)
        for position, token_id in frame.tokens:
            canvas[3 + position] = token_id
    assert model.mask_token_id not in canvas


def test_company_changes_no_log_probability():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    params = GenerationParams(max_tokens=16, policy="confidence", temperature=1.0, seed=1)
    alone = engine.generate([[1, 2, 3]], params)[0]
    company = engine.generate([[1, 2, 3], [4], [5, 6]], params)[0]
    assert alone.tokens == company.tokens


@pytest.mark.parametrize("length", ["auto", None])
def test_the_length_that_fits_wins(length: str | None):
    engine = toy_engine(RaggedChain(ring(20), context_length=64))
    for fitting in (3, 7, 12):
        infill = Infill([2], Hole(length, candidates=(3, 7, 12)), [2 + fitting + 1])
        params = GenerationParams(policy="confidence", temperature=0.0, seed=1)
        (done,) = engine.generate(infill, params)
        assert done.token_ids == tuple(range(3, 3 + fitting))
        assert [each for each, _ in done.lengths] == [3, 7, 12]
        assert dict(done.lengths)[fitting] == max(score for _, score in done.lengths)
        assert dict(done.lengths)[fitting] == pytest.approx(done.mean_log_prob)


def test_each_length_is_filled_as_if_it_had_been_asked_for():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    params = GenerationParams(policy="random", steps=6, temperature=1.0, seed=4)
    auto = engine.generate([Infill([1, 2], Hole("auto"), [3], Hole(2), [9])], params)[0]
    assert [length for length, _ in auto.lengths] == [4, 8, 16, 32]
    for length, score in auto.lengths:
        infill = Infill([1, 2], Hole(length), [3], Hole(2), [9])
        (alone,) = engine.generate(infill, params)
        assert alone.mean_log_prob == pytest.approx(score)
        if score == max(each for _, each in auto.lengths):
            assert alone.token_ids == auto.token_ids
            assert alone.usage == auto.usage


def test_a_step_budget_is_cut_to_what_there_is_to_fill():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    params = GenerationParams(policy="random", steps=6, seed=4)
    (done,) = engine.generate(Infill([1], Hole(None, candidates=(2, 12)), [3]), params)
    assert len(done.lengths) == 2


def test_automatic_and_plain_prompts_share_a_batch_in_order():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64), num_slots=3)
    params = GenerationParams(max_tokens=5, seed=4, ignore_eos=True)
    auto = Infill([1, 2], Hole("auto"), [9])
    first, second, third = engine.generate([[7], auto, [8]], params)
    assert first == engine.generate([7], params)[0]
    assert second == engine.generate([auto], params.replace(seed=5))[0]
    assert third == engine.generate([8], params.replace(seed=6))[0]


def test_lengths_that_cannot_be_tried_are_refused():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    for parts, words in (
        (([1], Hole("auto"), [2], Hole(None), [3]), "one hole of an infill .* got 2"),
        (([1], Hole("auto", candidates=()), [2]), "1 to 16 candidates for its length, got 0"),
        (([1], Hole("auto", candidates=tuple(range(1, 18))), [2]), "got 17"),
        (([1], Hole("auto", candidates=(4, 0)), [2]), "must be in 1..1000000, got 0"),
        (([1], Hole("auto", candidates=(4, "x")), [2]), "must be an integer, got 'x'"),
        (([1], Hole("many"), [2]), "must be an integer, got 'many'"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            engine.generate(Infill(*parts))
        assert engine.is_idle
    with pytest.raises(ContextLengthExceeded, match="64"):
        engine.generate(Infill([1], Hole("auto", candidates=(4, 64)), [2]))
    with pytest.raises(InvalidRequest, match=r"filled by Engine\.generate"):
        engine.prepare(Infill([1], Hole("auto"), [2]))
