"""Scores: the bound of an exact posterior is the exact likelihood; packed equals one by one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest

from tiny_models import CONTEXT_LENGTH, write_modernbert
from toy_models import MarkovModel, markov_chain, toy_engine

LENGTH = 12
BLOCK_LENGTH = 4


@pytest.fixture(scope="module")
def chain() -> MarkovModel:
    return MarkovModel(markov_chain(states=5), context_length=LENGTH)


@pytest.fixture(scope="module", params=[None, BLOCK_LENGTH], ids=["bidirectional", "block_causal"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modernbert(tmp_path_factory.mktemp("model"), block_length=request.param, seed=6)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.from_pretrained(folder, dtype="float32")


def test_the_bound_of_the_exact_posterior_is_the_exact_likelihood(chain: MarkovModel):
    texts = chain.sample(4, LENGTH, torch.Generator().manual_seed(3))
    exact = chain.negative_log_likelihood(texts) * LENGTH
    scores = toy_engine(chain).score(texts.tolist(), draws=1024)
    for score, nats in zip(scores, exact.tolist(), strict=True):
        assert score.nats == pytest.approx(nats, abs=4 * score.standard_error)
        assert score.standard_error < 0.5
        assert score.num_tokens == LENGTH


def plain_leave_one_out(engine: Engine, ids: list[int], num_given: int) -> float:
    model, total = engine._model, 0.0
    for position in range(num_given, len(ids)):
        stop = len(ids)
        if model.attention == "block_causal":
            stop = min((position // BLOCK_LENGTH + 1) * BLOCK_LENGTH, stop)
        canvas = [*ids[:position], model.mask_token_id, *ids[position + 1 : stop]]
        logits = engine.logits(canvas)[position]
        logits[list(model.never_emit_token_ids)] = -torch.inf
        total -= logits.log_softmax(-1)[ids[position]].item()
    return total


@pytest.mark.parametrize("num_given", [0, 3, 8])
def test_leave_one_out_matches_the_plain_loop(engine: Engine, num_given: int):
    ids = [10 + 7 * i % 60 for i in range(18)]
    score = engine.score([ids[num_given:]], prompt=ids[:num_given], method="leave_one_out")[0]
    assert score.nats == pytest.approx(plain_leave_one_out(engine, ids, num_given), rel=1e-4)
    assert score.nats_per_token == score.nats / (18 - num_given)
    assert score.standard_error == 0.0


def test_a_single_token_has_nothing_to_estimate(engine: Engine):
    bound = engine.score([[20]], prompt=[10, 11], draws=3)[0]
    exact = engine.score([[20]], prompt=[10, 11], method="leave_one_out")[0]
    assert bound.nats == pytest.approx(exact.nats, rel=1e-5)


def test_the_same_seed_scores_alike_in_any_budget(folder: Path, engine: Engine):
    ids = [10 + 7 * i % 60 for i in range(30)]
    narrow = Engine.from_pretrained(folder, dtype="float32", token_budget=40)
    first, again, other = (
        maker.score([ids], draws=8, seed=seed)[0].nats
        for maker, seed in ((engine, 1), (narrow, 1), (engine, 2))
    )
    assert first == pytest.approx(again, rel=1e-4)
    assert first != other


def test_more_draws_come_closer(engine: Engine):
    ids = [10 + 7 * i % 60 for i in range(30)]
    few, many = (engine.score([ids], draws=draws)[0] for draws in (8, 256))
    assert many.standard_error < few.standard_error
    assert math.isclose(few.nats, many.nats, abs_tol=5 * few.standard_error)


def test_what_cannot_be_scored_is_refused(engine: Engine):
    with pytest.raises(InvalidRequest, match="at least one token"):
        engine.score([[10], []])
    with pytest.raises(InvalidRequest, match="method must be one of bound, leave_one_out"):
        engine.score([[10]], method="magic")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="draws must be at least 1, got 0"):
        engine.score([[10]], draws=0)
    with pytest.raises(ContextLengthExceeded, match=str(CONTEXT_LENGTH)):
        engine.score([[10] * (CONTEXT_LENGTH + 1)])
