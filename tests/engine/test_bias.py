"""Biases and penalties against plain loops, and in what is generated."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from diffusiongpt.engine.bias import penalties
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS

from toy_models import HashModel, toy_engine

PROMPT = [3, 1, 4, 4, 4]


def test_penalties_match_the_plain_loop():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 6, (40, 15), generator=generator)
    held = torch.rand(40, 15, generator=generator) < torch.rand(40, 1, generator=generator)
    frequency, presence = torch.randn(2, 40, generator=generator)
    found = penalties(ids, held, frequency, presence)
    dense = torch.zeros(40, 6).scatter_add_(1, found.token_id, found.value)
    for row in range(40):
        counts = Counter(ids[row][held[row]].tolist())
        for token in range(6):
            count = counts[token]
            expected = -(count * frequency[row] + presence[row]) if count else 0.0
            assert dense[row, token] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", sorted({*PRESETS} - {"credit"}))  # its own bias is on top
def test_every_policy_sees_the_biased_logits_of_the_canvas_as_it_stands(policy, temperature):
    model = HashModel(vocab_size=12, context_length=64)
    bias = ((2, 1.5), (7, -100.0), (11, 50.0))  # 11 is the mask: it stays banned
    params = GenerationParams(
        max_tokens=14,
        policy=policy,
        steps=24 if PRESETS[policy].tosses else None,
        block_length=7,
        temperature=temperature,
        seed=5,
        logit_bias=bias,
        frequency_penalty=0.6,
        presence_penalty=0.9,
        logprobs=3,
        watch=True,
    )
    canvas = [*PROMPT, *[model.mask_token_id] * 14]
    for frame in toy_engine(model).stream(PROMPT, params):
        logits = model.logits(canvas)
        counts = Counter(each for each in canvas[len(PROMPT) :] if each != model.mask_token_id)
        for token, value in bias:
            logits[:, token] += value
        for token, count in counts.items():
            logits[:, token] -= 0.6 * count + 0.9
        logits[:, model.mask_token_id] = -torch.inf
        expected = logits.log_softmax(dim=-1)
        for position, token, top in frame.logprobs:
            row = expected[len(PROMPT) + position]
            assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
            assert [each.token_id for each in top] == row.topk(3).indices.tolist()
            if temperature == 0.0:
                assert token.token_id == int(row.argmax())
        for position, token_id in frame.tokens:
            canvas[len(PROMPT) + position] = token_id
            assert token_id != 7
        for position in frame.remasked:
            canvas[len(PROMPT) + position] = model.mask_token_id


def tokens_of(params):
    model = HashModel(vocab_size=12, context_length=64)
    return toy_engine(model).generate([PROMPT], params)[0].token_ids


def test_a_bias_of_a_hundred_decides():
    params = GenerationParams(max_tokens=10, logit_bias=((4, 100.0),), seed=1)
    assert tokens_of(params) == (4,) * 10


def test_penalties_thin_out_repetitions_and_bounties_make_them():
    plain = GenerationParams(max_tokens=40, policy="confidence", seed=1, logit_bias=((4, 3.0),))
    num_kinds = [
        len(set(tokens_of(plain.replace(frequency_penalty=penalty, presence_penalty=penalty))))
        for penalty in (-2.0, 0.0, 2.0)
    ]
    assert num_kinds[0] < num_kinds[1] < num_kinds[2]


BAD = [
    ({"logit_bias": ((-1, 0.0),)}, "logit_bias must be at least 0, got -1"),
    ({"logit_bias": ((1, 100.5),)}, r"logit_bias must be in \[-100, 100\], got 100.5"),
    ({"logit_bias": ((1, float("nan")),)}, "got nan"),
    ({"logit_bias": ((1, 1.0), (1, 2.0))}, "each token once"),
    ({"logit_bias": tuple((each, 1.0) for each in range(1025))}, "at most 1024 tokens, got 1025"),
    ({"frequency_penalty": 2.1}, r"frequency_penalty must be in \[-2, 2\], got 2.1"),
    ({"presence_penalty": "1"}, "presence_penalty must be a number"),
    ({"min_p": -0.1}, r"min_p must be in \[0, 1\], got -0.1"),
]


@pytest.mark.parametrize(("fields", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_bad_values_are_refused_by_name(fields, sentence):
    with pytest.raises(InvalidRequest, match=sentence):
        GenerationParams(**fields)


def test_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(InvalidRequest, match=r"token ids must be in 0\.\.11, got 12"):
        tokens_of(GenerationParams(logit_bias=((12, 1.0),)))
