"""Policies that remember earlier steps, against plain loops on a whole answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.params import GenerationParams

from toy_models import HashModel, probabilities, toy_engine

LENGTH = 16


def ours(model: HashModel, seed: int, **fields: object) -> list[int]:
    params = GenerationParams(max_tokens=LENGTH, temperature=0.0, **fields)  # type: ignore[arg-type]
    company = GenerationParams(max_tokens=9, policy="random", seed=seed)
    done = toy_engine(model).generate([[0] * seed], params)[0]
    engine = toy_engine(model)
    requests = [engine.prepare([1], company), engine.prepare([0] * seed, params)]
    for request in requests:
        engine.add(request)
    tokens: dict[int, int] = {}
    while not engine.is_idle:
        for frame in engine.step():
            if frame.request_id == requests[1].request_id:
                tokens |= dict(frame.tokens)
    assert [tokens[position] for position in range(LENGTH)] == list(done.token_ids)
    return list(done.token_ids)


def commit(ids: list[int], wanted: list[int], best: Tensor, start: int) -> None:
    for i in wanted:
        ids[start + i] = int(best[i])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stable", [1, 2, 3])
def test_stability_equals_the_plain_loop(seed: int, stable: int):
    model = HashModel(vocab_size=4)
    ids = [0] * seed + [model.mask_token_id] * LENGTH
    history: list[list[int]] = [[] for _ in range(LENGTH)]
    while model.mask_token_id in ids:
        top, best = probabilities(model, ids)[seed:].max(dim=-1)
        for i in range(LENGTH):
            history[i].append(int(best[i]))
        masked = [i for i in range(LENGTH) if ids[seed + i] == model.mask_token_id]

        def is_steady(i: int) -> bool:
            last = history[i][-stable:]
            return len(last) == stable and len(set(last)) == 1

        ranked = sorted(masked, key=lambda i: (not is_steady(i), -top[i].item(), i))
        wanted = [i for i in masked if is_steady(i) and top[i] > 0.6]
        commit(ids, wanted or ranked[:1], best, seed)
    fields = {"policy": "stability", "stable": stable, "threshold": 0.6}
    assert ours(model, seed, **fields) == ids[seed:]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.7, 3.0])
def test_credit_equals_the_plain_loop(seed: int, alpha: float):
    # Four tokens, so that all of them may have credit.
    model = HashModel(vocab_size=5)
    mask = model.mask_token_id
    ids = [0] * seed + [mask] * LENGTH
    credit = torch.zeros(LENGTH, 4)
    while mask in ids:
        chances = probabilities(model, ids)[seed:, :4]
        top, best = chances.max(dim=-1)
        credit = 0.8 * credit
        credit[torch.arange(LENGTH), best] += top**0.2
        top, best = (chances.log() + alpha * credit.log1p()).softmax(dim=-1).max(dim=-1)
        masked = [i for i in range(LENGTH) if ids[seed + i] == mask]
        wanted = [i for i in masked if top[i] > 0.8]
        wanted = wanted or sorted(masked, key=lambda i: (-top[i].item(), i))[:1]
        commit(ids, wanted, best, seed)
    fields = {"policy": "credit", "credit": alpha, "threshold": 0.8}
    assert ours(model, seed, **fields) == ids[seed:]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"policy": "first_hitting", "steps": 3}, "steps must be absent, because first_hitting"),
        ({"policy": "threshold", "stable": 2}, "stable belongs to the policies stability;"),
        ({"policy": "stability", "stable": 0}, r"stable must be in 1\.\.256, got 0"),
        ({"policy": "threshold", "credit": 1.0}, "credit belongs to the policies credit;"),
        ({"policy": "ancestral", "position_bias": 1.0}, "ancestral has no use for it"),
        ({"policy": "random", "position_bias": -1.0}, r"position_bias must be in \[0, inf\)"),
    ],
)
def test_what_a_policy_cannot_use_is_refused_in_a_sentence(
    fields: dict[str, object], sentence: str
):
    with pytest.raises(InvalidRequest, match=sentence):
        toy_engine(HashModel(vocab_size=5)).prepare(
            [],
            GenerationParams(max_tokens=4, **fields),  # type: ignore[arg-type]
        )
