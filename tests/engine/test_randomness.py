"""The counter generator: uniform, independent, and the same wherever it is asked."""

from __future__ import annotations

import math

import pytest
import torch

from diffusiongpt.engine.randomness import Purpose, counter_keys, gumbel, uniform


def keys(seed: int, count: int, purpose: Purpose = Purpose.DRAW, visit: int = 0) -> torch.Tensor:
    return counter_keys(torch.tensor(seed), purpose, torch.arange(count), visit)


def test_a_subset_of_positions_has_the_same_keys():
    everything = keys(7, 100)
    some = counter_keys(torch.tensor(7), Purpose.DRAW, torch.tensor([3, 50, 99]))
    assert everything[[3, 50, 99]].equal(some)


def test_uniforms_fill_the_unit_interval_evenly():
    u = uniform(keys(1, 100_000))
    assert u.min() >= 0.0
    assert u.max() < 1.0
    counts = torch.histc(u, bins=64, min=0.0, max=1.0)
    chi_squared = ((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum().item()
    assert chi_squared < 63 + 5 * math.sqrt(2 * 63)


@pytest.mark.parametrize(
    "other",
    [keys(2, 50_000), keys(1, 50_000, Purpose.ORDER), keys(1, 50_000, visit=1)],
    ids=["seed", "purpose", "visit"],
)
def test_streams_that_differ_in_one_thing_are_uncorrelated(other: torch.Tensor):
    pair = torch.stack([uniform(keys(1, 50_000)), uniform(other)])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 5 / math.sqrt(50_000)


def test_neighbouring_positions_and_seeds_are_uncorrelated():
    u = uniform(keys(1, 50_001))
    assert abs(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1].item()) < 5 / math.sqrt(50_000)
    seeds = torch.arange(50_001)
    v = uniform(counter_keys(seeds, Purpose.ORDER, torch.tensor(0)))
    assert abs(torch.corrcoef(torch.stack([v[1:], v[:-1]]))[0, 1].item()) < 5 / math.sqrt(50_000)


def test_gumbel_noise_has_the_gumbel_law():
    noise = gumbel(keys(3, 400), 500).flatten()
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    # P(g > 9) = 1 - exp(-exp(-9)): the tail that float32 sampling is known to cut
    expected = 200_000 * -math.expm1(-math.exp(-9))
    assert (noise > 9).sum().item() == pytest.approx(expected, abs=5 * math.sqrt(expected))


def test_a_lane_has_the_same_noise_whatever_the_number_of_lanes():
    assert gumbel(keys(3, 5), 100)[:, :40].equal(gumbel(keys(3, 5), 40))


def test_noise_of_adjacent_lanes_and_keys_is_uncorrelated():
    noise = gumbel(keys(9, 300), 300)
    for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])):
        pair = torch.stack([a.flatten(), b.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 5 / math.sqrt(a.numel())


def test_the_generator_never_changes():
    # Golden numbers: a seed in somebody's notes must give the same text next year.
    assert keys(42, 3).tolist() == GOLDEN_KEYS
    assert uniform(keys(42, 2, Purpose.ORDER)).tolist() == pytest.approx(GOLDEN_UNIFORMS, abs=1e-7)


GOLDEN_KEYS = [-7449312423734024600, 84947690022659424, 1047208658863888317]
GOLDEN_UNIFORMS = [0.18428468704223633, 0.24226731061935425]
