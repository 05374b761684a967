import pytest
import torch

from diffusiongpt.training.noise import (
    corrupt,
    draw_corruption,
    independent_times,
    keyed_generator,
    stratified_times,
)


def test_each_stratum_gets_one_time():
    times = stratified_times(64, keyed_generator(0, 5))
    assert (times * 64).ceil().sort().values.tolist() == list(range(1, 65))
    assert times.min() >= 1e-3
    assert times.max() <= 1


def test_independent_times_are_uniform_and_leave_strata_empty():
    times = independent_times(6400, keyed_generator(0, 5))
    assert times.min() >= 1e-3
    assert times.max() <= 1
    tenths = torch.histc(times.float(), 10, 0, 1) / 6400
    assert (tenths - 0.1).abs().max() < 0.015
    assert len((times * 6400).ceil().unique()) < 4300  # 1 - 1/e of them, if nothing is evened out


def test_stratified_times_even_out_how_much_is_masked():
    maskable = torch.ones(16, 32, dtype=torch.bool)
    spread = {}
    for sampling in ("stratified", "independent"):
        shares = [
            draw_corruption(maskable, 8, "exact_count", 7, step, 0, 16, time_sampling=sampling)[0]
            .float()
            .mean()
            for step in range(200)
        ]
        assert float(torch.stack(shares).mean()) == pytest.approx(0.5625, abs=0.01)
        spread[sampling] = float(torch.stack(shares).std())
    assert spread["stratified"] < 0.2 * spread["independent"]


def test_corruption_is_the_same_however_the_batch_is_split():
    maskable = torch.rand(12, 32, generator=torch.Generator().manual_seed(0)) < 0.8
    whole = draw_corruption(maskable, 8, "exact_count", 7, 3, 0, 12)
    for size in (1, 3, 4, 6):
        parts = [
            draw_corruption(maskable[i : i + size], 8, "exact_count", 7, 3, i, 12)
            for i in range(0, 12, size)
        ]
        assert torch.cat([masked for masked, _ in parts]).equal(whole[0])
        assert torch.cat([weights for _, weights in parts]).equal(whole[1])


def test_a_run_that_goes_on_draws_what_it_always_drew():
    maskable = torch.ones(4, 32, dtype=torch.bool)
    weights = draw_corruption(maskable, 8, "exact_count", 7, 3, 0, 4)[1]
    assert float((weights * torch.arange(128).view(4, 32)).sum()) == 8141.12353515625


def test_seed_and_step_change_the_corruption():
    maskable = torch.ones(4, 32, dtype=torch.bool)
    first = draw_corruption(maskable, 8, "exact_count", 7, 3, 0, 4)[0]
    assert not first.equal(draw_corruption(maskable, 8, "exact_count", 7, 4, 0, 4)[0])
    assert not first.equal(draw_corruption(maskable, 8, "exact_count", 8, 3, 0, 4)[0])


def test_exact_count_masks_the_ceiling_of_t_n_and_weighs_n_over_k():
    generator = torch.Generator().manual_seed(0)
    maskable = torch.rand(64, 32, generator=generator) < 0.7
    times = torch.rand(64, 4, generator=generator)
    masked, weights = corrupt(maskable, times, torch.rand(64, 32, generator=generator))
    for row in range(64):
        for block in range(4):
            cut = slice(8 * block, 8 * block + 8)
            n = int(maskable[row, cut].sum())
            k = int(masked[row, cut].sum())
            assert k == min(n, max(1, int((times[row, block] * n).ceil())))
            assert not (masked[row, cut] & ~maskable[row, cut]).any()
            if n:
                assert torch.allclose(weights[row, cut][masked[row, cut]], torch.tensor(n / k))


def estimates(noise, draws=400):
    """The bound of a denoiser whose loss is 1.5 + 4 t at mask rate t; the truth is 3.5."""
    maskable = torch.ones(16, 64, dtype=torch.bool)
    values = []
    for step in range(draws):
        masked, weights = draw_corruption(maskable, 8, noise, 0, step, 0, 16)
        rate = masked.view(16, 8, 8).float().mean(-1, keepdim=True).expand(16, 8, 8)
        values.append((weights * (1.5 + 4 * rate.reshape(16, 64))).sum() / maskable.sum())
    return torch.stack(values)


def test_exact_count_estimates_the_bound_with_less_variance_than_bernoulli():
    exact, bernoulli = estimates("exact_count"), estimates("bernoulli")
    # k = 1..8 of 8 in equal shares: the mean of 1.5 + 4 k/8 is 3.75 for this denoiser.
    assert abs(float(exact.mean()) - 3.75) < 0.01
    assert abs(float(bernoulli.mean()) - 3.75) < 0.05
    assert exact.std() < bernoulli.std() / 3
