"""Log-probabilities against a plain recomputation from the canvas of the step before."""

from __future__ import annotations

import math

import pytest
import torch

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS

from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from toy_models import HashModel, toy_engine

PROMPT = [3, 1, 4]


def hash_model(**fields):
    return HashModel(vocab_size=30, context_length=64, **fields)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", sorted({*PRESETS} - {"credit"}))
def test_a_logprob_is_the_models_at_the_step_of_the_commit(policy, temperature):
    model = hash_model()
    params = GenerationParams(
        max_tokens=12,
        policy=policy,
        steps=24 if PRESETS[policy].tosses else None,
        temperature=temperature,
        seed=5,
        logprobs=4,
        watch=True,
        block_length=6,
    )
    canvas = [*PROMPT, *[model.mask_token_id] * 12]
    seen = 0
    for frame in toy_engine(model).stream(PROMPT, params):
        logits = model.logits(canvas)
        logits[:, model.mask_token_id] = -torch.inf
        expected = logits.log_softmax(dim=-1)
        assert [(each.position, each.token.token_id) for each in frame.logprobs] == [*frame.tokens]
        for position, token, top in frame.logprobs:
            row = expected[len(PROMPT) + position]
            assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
            best = row.topk(4)
            assert [each.token_id for each in top] == best.indices.tolist()
            assert [each.logprob for each in top] == pytest.approx(best.values.tolist(), abs=1e-4)
            seen += 1
        for position, token_id in frame.tokens:
            canvas[len(PROMPT) + position] = token_id
        for position in frame.remasked:
            canvas[len(PROMPT) + position] = model.mask_token_id
    assert model.mask_token_id not in canvas
    assert seen >= 12 if PRESETS[policy].revises else seen == 12


def test_only_those_who_ask_get_them_and_the_tokens_stay_the_same():
    engine = toy_engine(hash_model(), num_slots=3)
    params = GenerationParams(max_tokens=8, policy="confidence", temperature=0.0, seed=1)
    asks = [params, params.replace(logprobs=0), params.replace(logprobs=2)]
    requests = [engine.prepare(PROMPT, each) for each in asks]
    for request in requests:
        engine.add(request)
    frames = {request.request_id: [] for request in requests}
    while not engine.is_idle:
        for frame in engine.step():
            frames[frame.request_id].append(frame)
    plain, alone, likely = (
        [each for frame in some for each in frame.logprobs] for some in frames.values()
    )
    assert plain == []
    assert {len(each.top) for each in alone} == {0}
    assert {len(each.top) for each in likely} == {2}
    assert len({tuple(t for f in some for t in f.tokens) for some in frames.values()}) == 1


def test_a_vocabulary_smaller_than_what_is_asked_for_gives_all_that_may_be_drawn():
    model = HashModel(vocab_size=6, context_length=64)
    frames = toy_engine(model).stream(PROMPT, GenerationParams(max_tokens=2, logprobs=20, seed=1))
    tops = [each.top for frame in frames for each in frame.logprobs]
    assert [len(top) for top in tops] == [5, 5]
    for top in tops:
        assert sum(math.exp(each.logprob) for each in top) == pytest.approx(1.0, abs=1e-5)


def test_tokens_are_spelled_and_special_ones_named(tmp_path):
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(tmp_path, vocab_size=VOCAB_SIZE, seed=4, section=section)
    write_tiny_tokenizer(tmp_path)
    engine = Engine.from_pretrained(tmp_path)
    frames = list(engine.stream("the cat", GenerationParams(max_tokens=30, seed=2, logprobs=20)))
    told = sorted(each for frame in frames for each in frame.logprobs)
    tokens = [each.token for each in told]
    top = [token for frame in frames for each in frame.logprobs for token in each.top]
    text = b"".join(token.data or b"" for token in tokens).decode(errors="replace")
    assert text == "".join(frame.content for frame in frames)
    assert {token.text for token in top if token.token_id == IM_END} <= {"<|im_end|>"}
    assert all(token.data for token in top if token.token_id > 10)


@pytest.mark.parametrize("value", [-1, 21, True, 1.5])
def test_bad_numbers_of_logprobs_are_refused(value):
    with pytest.raises(InvalidRequest, match="logprobs must be"):
        GenerationParams(logprobs=value)
