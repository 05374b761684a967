"""Samplers against a denoiser that knows the exact posterior (arXiv 2602.19619, HMM oracle).

The model is a Markov chain, so the law of a correct sampler is known in full: its n-grams must
be within sampling noise of the chain's and its likelihood within its standard error.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from diffusiongpt.engine.params import EditParams, GenerationParams

from toy_models import MarkovModel, markov_chain, toy_engine

NUM_CHAINS, LENGTH = 1000, 32
EDITS = EditParams(threshold=0.5, max_rounds=4)
DOUBTS = EditParams(threshold=1.0, doubt=0.1, max_rounds=4)


@cache
def chain() -> MarkovModel:
    return MarkovModel(markov_chain(seed=2), context_length=LENGTH)


@cache
def truth() -> Tensor:
    return chain().sample(NUM_CHAINS, LENGTH, torch.Generator().manual_seed(1))


def sampled(**fields: object) -> tuple[Tensor, float]:
    """Completions of an empty prompt (N, L), and the mean number of forwards."""
    engine = toy_engine(chain(), num_slots=512, token_budget=512 * LENGTH, max_waiting=NUM_CHAINS)
    params = GenerationParams(max_tokens=LENGTH, temperature=1.0, seed=0, **fields)  # type: ignore[arg-type]
    completions = engine.generate([[] for _ in range(NUM_CHAINS)], params)
    nfe = sum(completion.usage.nfe for completion in completions) / NUM_CHAINS
    return torch.tensor([completion.token_ids for completion in completions]), nfe


def bigrams(chains: Tensor) -> Tensor:
    states = chain().vocab_size - 1
    counts = torch.bincount(
        (chains[:, :-1] * states + chains[:, 1:]).flatten(), minlength=states**2
    )
    return counts / counts.sum()


def total_variation(chains: Tensor) -> float:
    """Distance of the bigram frequencies from the chain's own."""
    model = chain()
    exact = (model.stationary[:, None] * model.transition).flatten()
    return 0.5 * (bigrams(chains) - exact).abs().sum().item()


def likelihood_gap(chains: Tensor) -> float:
    """Difference of the mean NLL from the entropy rate's estimate, in standard errors."""
    ours, real = (chain().negative_log_likelihood(each) for each in (chains, truth()))
    error = math.sqrt((ours.var() + real.var()).item() / NUM_CHAINS)
    return (ours.mean() - real.mean()).item() / error


@pytest.mark.parametrize(
    "fields",
    [
        {"policy": "ancestral"},
        {"policy": "first_hitting"},
        {"policy": "confidence", "position_bias": 0.5},
        {"policy": "confidence"},
        {"policy": "margin"},
        {"policy": "entropy"},
        {"policy": "confidence", "block_length": 8},
        {"policy": "threshold", "threshold": 1.0},
        {"policy": "entropy_bound", "entropy_bound": 0.0},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_one_token_a_step_draws_from_the_chain_itself(fields: dict[str, object]):
    chains, nfe = sampled(**fields)
    assert nfe == LENGTH or "bound" in str(fields)
    floor = total_variation(truth())
    assert total_variation(chains) < 1.5 * floor
    assert abs(likelihood_gap(chains)) < 4.0


@pytest.mark.parametrize(
    ("fields", "max_nfe", "max_excess"),
    [
        # Bounds are regressions: parallel commits cost likelihood, in nats per token.
        ({"policy": "entropy_bound", "entropy_bound": 1.0, "gap": 3}, 21.0, 0.05),
        ({"policy": "entropy_bound", "entropy_bound": 2.0, "gap": 4}, 18.0, 0.08),
        ({"policy": "threshold", "threshold": 0.6}, 31.0, 0.08),
        ({"policy": "factor", "factor": 1.0}, 31.5, 0.03),
        ({"policy": "factor", "factor": 2.0}, 20.0, 0.45),
        ({"policy": "random", "steps": 8, "gap": 4}, 8.0, 0.08),
        ({"policy": "pos_bias", "entropy_bound": 0.5}, 30.0, 0.05),
        ({"policy": "stability", "threshold": 0.6}, 30.0, 0.1),
        ({"policy": "joint"}, 33.0, 0.0),
        ({"policy": "verify"}, 33.0, 0.04),
        ({"policy": "random", "steps": 8, "edits": DOUBTS}, 10.0, 0.25),
        ({"policy": "p2", "steps": 16}, 16.0, 0.12),
        ({"policy": "remdm", "steps": 64}, 64.0, 0.08),
        ({"policy": "remdm_confidence", "steps": 64, "remask": 0.05}, 64.0, 0.05),
        ({"policy": "random", "steps": 8, "edits": EDITS}, 9.6, 0.08),
        ({"policy": "random", "steps": 8, "gap": 2, "edits": EDITS}, 9.4, 0.04),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_parallel_commits_stay_within_their_bound(
    fields: dict[str, object], max_nfe: float, max_excess: float
):
    chains, nfe = sampled(**fields)
    assert nfe <= max_nfe
    excess = (
        chain().negative_log_likelihood(chains).mean()
        - chain().negative_log_likelihood(truth()).mean()
    )
    assert -0.1 < excess.item() < max_excess


def test_edits_mend_what_parallel_commits_broke():
    draft, _ = sampled(policy="random", steps=8)
    edited, _ = sampled(policy="random", steps=8, edits=EDITS)
    assert likelihood_gap(draft) > 20.0
    assert likelihood_gap(edited) < 0.25 * likelihood_gap(draft)
    assert total_variation(edited) < 0.8 * total_variation(draft)


def test_shadows_mend_what_parallel_commits_broke_without_edit_training():
    model = MarkovModel(markov_chain(), can_edit=False)
    engine = toy_engine(model, num_slots=40, token_budget=40 * 24)
    loss, nfe = {}, {}
    for policy in ("threshold", "wino"):
        params = GenerationParams(
            max_tokens=12, policy=policy, threshold=0.2, temperature=1.0, seed=0
        )
        done = engine.generate([[]] * 40, params)
        chains = torch.tensor([each.token_ids for each in done])
        loss[policy] = model.negative_log_likelihood(chains).mean().item()
        nfe[policy] = sum(each.usage.nfe for each in done) / 40
    assert loss["threshold"] > 2.0
    assert loss["wino"] < 1.4  # the chain's own is 1.2
    assert nfe["wino"] < 12


def test_credit_takes_fewer_steps_and_sharpens():
    chains, nfe = sampled(policy="credit", threshold=0.6)
    assert nfe < 0.75 * sampled(policy="threshold", threshold=0.6)[1]
    assert total_variation(chains) > 5 * total_variation(truth())


def test_the_oracle_notices_commits_that_ignore_each_other():
    chains, nfe = sampled(policy="confidence", steps=8)
    assert nfe == 8.0
    assert total_variation(chains) > 10 * total_variation(truth())
    assert abs(likelihood_gap(chains)) > 20.0


def plain_ancestral(steps: int, generator: torch.Generator) -> Tensor:
    """MDLM's ancestral sampler as published: a coin for every masked position in every step."""
    model = chain()
    ids = torch.full((NUM_CHAINS, LENGTH), model.mask_token_id)
    for step in range(steps):
        probability = model.posterior(ids).softmax(dim=-1)
        drawn = torch.multinomial(probability.flatten(0, 1), 1, generator=generator).view_as(ids)
        coin = torch.rand(ids.shape, generator=generator) < 1.0 / (steps - step)
        ids = torch.where((ids == model.mask_token_id) & coin, drawn, ids)
    return ids


def test_hitting_times_drawn_ahead_have_the_law_of_the_coin_tosses():
    steps = 8
    ours, nfe = sampled(policy="ancestral", steps=steps)
    theirs = plain_ancestral(steps, torch.Generator().manual_seed(3))
    mean = {
        name: chain().negative_log_likelihood(chains)
        for name, chains in (("ours", ours), ("theirs", theirs))
    }
    error = math.sqrt((mean["ours"].var() + mean["theirs"].var()).item() / NUM_CHAINS)
    assert abs((mean["ours"].mean() - mean["theirs"].mean()).item()) < 4 * error
    assert nfe <= steps * (1 - (1 - 1 / steps) ** LENGTH) + 0.05


def plain_remdm(steps: int, eta: float, generator: torch.Generator) -> Tensor:
    """ReMDM-cap as published: per step, a coin for every masked and every filled position."""
    model = chain()
    ids = torch.full((NUM_CHAINS, LENGTH), model.mask_token_id)
    for step in range(steps):
        alpha, later = step / steps, (step + 1) / steps
        sigma = min(eta, (1.0 - later) / alpha) if alpha else 0.0
        probability = model.posterior(ids).softmax(dim=-1)
        drawn = torch.multinomial(probability.flatten(0, 1), 1, generator=generator).view_as(ids)
        coin = torch.rand(ids.shape, generator=generator)
        masked = ids == model.mask_token_id
        filled = torch.where(coin < sigma, model.mask_token_id, ids)
        fill = (later - (1.0 - sigma) * alpha) / (1.0 - alpha)
        ids = torch.where(masked, torch.where(coin < fill, drawn, ids), filled)
    return ids


def test_remasking_by_coins_has_the_law_of_the_published_loop():
    steps = 24
    ours, _ = sampled(policy="remdm", steps=steps, remask=0.1)
    theirs = plain_remdm(steps, 0.1, torch.Generator().manual_seed(3))
    mean = [chain().negative_log_likelihood(each) for each in (ours, theirs)]
    error = math.sqrt(sum(each.var().item() for each in mean) / NUM_CHAINS)
    assert abs((mean[0].mean() - mean[1].mean()).item()) < 4 * error
    assert total_variation(ours) == pytest.approx(total_variation(theirs), abs=0.01)
