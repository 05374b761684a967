import math

import pytest
import torch

from diffusiongpt.training.config import SCHEDULES as NAMES
from diffusiongpt.training.noise import draw_corruption
from diffusiongpt.training.schedules import SCHEDULES, mean_rate, noise_levels

TIMES = torch.linspace(0.001, 1, 1000, dtype=torch.float64)


def test_the_configuration_offers_what_there_is():
    assert set(NAMES) == set(SCHEDULES)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_slope_is_the_derivative_of_the_rate(name):
    rates, slopes = noise_levels(TIMES, name, 8)
    ahead = noise_levels(TIMES + 1e-6, name, 8)[0]
    torch.testing.assert_close((ahead - rates) / 1e-6, slopes.expand(1000), atol=1e-5, rtol=1e-4)
    assert float(rates[-1]) == pytest.approx(1.0)


def test_the_clipped_rate_masks_one_position_of_a_block_at_least():
    rates, slopes = noise_levels(TIMES, "clipped", 8)
    assert float(rates.min()) == 1 / 8
    assert rates[TIMES > 1 / 8].equal(TIMES[TIMES > 1 / 8])
    assert float(slopes) == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_mean_rate_is_the_mean_of_the_rates(name):
    fine = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert mean_rate(name, 8) == pytest.approx(float(noise_levels(fine, name, 8)[0].mean()), 1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_steps_of_a_grid_add_up_to_the_whole_rate(name):
    rates, slopes = noise_levels(TIMES, name, 8, num_steps=10)
    assert len(set((rates * 1e9).round().tolist())) == 10
    # Each tenth of the times holds one step, whose slope is ten times what it adds.
    assert float((slopes.expand(1000)).mean()) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("noise", ["exact_count", "bernoulli"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [None, 100])
def test_a_model_that_knows_nothing_scores_log_v_on_average_under_every_schedule(
    noise, schedule, num_steps
):
    maskable = torch.ones(64, 64, dtype=torch.bool)
    total = sum(
        draw_corruption(maskable, 8, noise, 0, step, 0, 64, schedule=schedule, num_steps=num_steps)[
            1
        ].sum()
        for step in range(60)
    )
    # The grid of steps and the clamp at t = 0.001 are within the tolerance.
    assert float(total) / (60 * maskable.numel()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_estimate_the_same_bound(schedule):
    """The loss 1.5 + 4 r at rate r of k masked positions of 8: 3.75, however t is drawn."""
    maskable = torch.ones(16, 64, dtype=torch.bool)
    values = []
    for step in range(400):
        masked, weights = draw_corruption(
            maskable, 8, "exact_count", 0, step, 0, 16, schedule=schedule
        )
        rate = masked.view(16, 8, 8).float().mean(-1, keepdim=True).expand(16, 8, 8)
        values.append(float((weights * (1.5 + 4 * rate.reshape(16, 64))).sum() / maskable.sum()))
    assert sum(values) / len(values) == pytest.approx(3.75, abs=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_time_weighting_all_masked_positions_weigh_alike(schedule):
    maskable = torch.ones(64, 64, dtype=torch.bool)
    masked, weights = draw_corruption(
        maskable, 8, "bernoulli", 0, 0, 0, 64, schedule=schedule, time_weighting=False
    )
    assert len(weights[masked].unique()) == 1
    assert not weights[~masked].any()
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.03)
    assert math.isclose(float(weights.max()), 1 / mean_rate(schedule, 8), rel_tol=1e-6)
