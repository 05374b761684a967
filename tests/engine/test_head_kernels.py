"""The kernels of the fused head against a plain loop, the softmax and the head in chunks.

Without a device Triton's interpreter runs them: see `test_head_devices.py`.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffusiongpt.engine.fused_head import FusedHead
from diffusiongpt.engine.randomness import gumbel

from paired_heads import (
    BANNED,
    DELETE,
    DEVICE,
    TYPES,
    by_kernels,
    draw_params,
    expect_alike,
    new_heads,
    new_product,
    new_rows,
)


def plain_gumbel(key: int, lane: int) -> float:
    """The noise of `randomness.gumbel`, in integers of any size and 64-bit floats."""
    wrap = 2**32 - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D & wrap
        x = (x ^ (x >> 15)) * 0x846CA68B & wrap
        return x ^ (x >> 16)

    bits = mix((mix((lane * 0x9E3779B9 + (key & wrap)) & wrap) + (key >> 32 & wrap)) & wrap)
    return -math.log(-math.log1p(-min((bits + 0.5) * 2.0**-32, 1 - 2.0**-24)))


def plain_logits(product: nn.Linear, hidden: Tensor, may_delete: bool) -> list[float]:
    """Logits of one row in 64 bits, rounded once to the weights' type; -inf where banned."""
    bias = [0.0] * product.out_features if product.bias is None else product.bias.tolist()
    logits = []
    for token, (weights, addend) in enumerate(zip(product.weight.tolist(), bias, strict=True)):
        total = sum(w * h for w, h in zip(weights, hidden.tolist(), strict=True)) + addend
        rounded = torch.tensor(total, dtype=torch.float64).to(product.weight.dtype).item()
        is_banned = token in BANNED and not (token == DELETE and may_delete)
        logits.append(-math.inf if is_banned else rounded)
    return logits


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_loop_gives_the_same_statistics_and_draws(dtype, bias):
    product = new_product(150, 40, dtype, bias=bias)
    fused, _ = new_heads(product, num_programs=2)
    hidden, held, may_delete = new_rows(6, product)
    held[0] = 0  # a banned one
    params = draw_params(6, seed=2**63 - 1)
    seen, drawn = fused.statistics(hidden, held, may_delete), fused.draw(hidden, params, may_delete)
    for row in range(6):
        logits = plain_logits(product, hidden[row], bool(may_delete[row]))
        log_sum = math.log(sum(math.exp(z) for z in logits))
        log_p = [z - log_sum for z in logits]
        first, second = sorted(log_p, reverse=True)[:2]
        # One more or one less in the last of a logit's bits.
        near = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
        tolerance = {"rel": 1e-4, "abs": near}
        entropy = -sum(math.exp(each) * each for each in log_p if each > -math.inf)
        assert seen.log_top[row].item() == pytest.approx(first, **tolerance)
        assert seen.margin[row].item() == pytest.approx(
            math.exp(first) - math.exp(second), **tolerance
        )
        assert seen.entropy[row].item() == pytest.approx(entropy, **tolerance)
        if log_p[held[row]] == -math.inf:
            assert seen.log_held[row] < -1e29
        else:
            assert seen.log_held[row].item() == pytest.approx(log_p[held[row]], **tolerance)
        assert log_p[seen.top_id[row]] == pytest.approx(first, **tolerance)
        key, temperature = params.key[row].item(), params.temperature[row].item()
        noisy = [
            z + temperature * plain_gumbel(key, token) if z > -math.inf else z
            for token, z in enumerate(logits)
        ]
        token = drawn.token_id[row].item()
        assert noisy[token] == pytest.approx(max(noisy), **tolerance)
        assert drawn.log_prob[row].item() == pytest.approx(log_p[token], **tolerance)


# Rows, vocabulary, hidden size, programs: one of each, none a multiple of a tile; several blocks
# of rows; shares whose last one is short; a tile a share; more shares than are joined at a time.
SIZES = [
    (1, 131, 17, 1),
    (3, 600, 64, 3),
    (17, 200, 130, 99),
    (66, 290, 33, 4),
    (9, 384, 48, 9),
    (2, 4200, 9, 999),
]


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_fused_head_is_the_head_in_chunks(sizes, dtype):
    num_rows, vocab_size, hidden_size, num_programs = sizes
    product = new_product(vocab_size, hidden_size, dtype, bias=num_rows % 2 == 1)
    fused, chunked = new_heads(product, num_programs=num_programs)
    hidden, held, may_delete = new_rows(num_rows, product)
    for deletes in (may_delete, None):
        seen = chunked.statistics(hidden, held, None, deletes)
        expect_alike(fused.statistics(hidden, held, deletes), seen, dtype)
        for seed in (0, 2**63 - 1, -(2**63)):
            params = draw_params(num_rows, seed)
            drawn = chunked.draw(hidden, params, truncate=False, may_delete=deletes)
            expect_alike(fused.draw(hidden, params, deletes), drawn, dtype)
    log_prob = [head.log_prob(hidden, held) for head in (fused, chunked)]
    torch.testing.assert_close(*log_prob, rtol=1e-3, atol=2e-3 if dtype == torch.float32 else 7e-2)


@pytest.mark.gpu
@by_kernels
def test_noise_is_that_of_the_counter_generator_for_any_key():
    from noise_kernel import write_noise

    edges = [0, -1, 1, 2**63 - 1, -(2**63), 2**32, 2**31, -(2**31), 2**32 - 1]
    key = torch.cat([torch.tensor(edges, device=DEVICE), draw_params(91).key])
    noise = torch.empty(100, 1024, device=DEVICE)
    write_noise[(100,)](key, noise, LANES=1024, enable_fp_fusion=True)
    torch.testing.assert_close(noise, gumbel(key, 1024), rtol=0, atol=1e-5)


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("dtype", TYPES[1:])
def test_logits_are_rounded_as_a_product_in_sixteen_bits_rounds_them(dtype):
    product = new_product(40, 2, dtype, bias=False)
    product.weight.zero_()
    product.weight[[5, 9], 0] = 100.0
    product.weight[9, 1] = 0.01  # less than half of what lies between 100 and the next number
    fused, chunked = new_heads(product)
    hidden = torch.ones(1, 2, device=DEVICE, dtype=dtype)
    held = torch.tensor([9], device=DEVICE)
    for head in (fused, chunked):
        seen = head.statistics(hidden, held)
        assert seen.top_id.tolist() == [5]
        assert seen.margin.tolist() == [0.0]
        assert seen.log_held.equal(seen.log_top)


@pytest.mark.gpu
@by_kernels
def test_draws_follow_the_softmax():
    num_rows, temperature = 2048, 0.7
    product = new_product(12, 8, torch.float32, bias=False)
    fused, _ = new_heads(product)
    hidden = new_rows(1, product)[0].expand(num_rows, 8)
    drawn = fused.draw(hidden, draw_params(num_rows, temperature=temperature)).token_id
    logits = product(hidden[0]) / temperature
    logits[BANNED] = -math.inf
    expected = logits.softmax(dim=0) * num_rows
    counts = torch.bincount(drawn, minlength=12)
    assert not counts[BANNED].any()
    allowed = expected > 0
    chi_squared = ((counts - expected)[allowed] ** 2 / expected[allowed]).sum().item()
    assert chi_squared < 8 + 5 * math.sqrt(2 * 8)


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize(("vocab_size", "num_programs"), [(700, 1), (700, 99), (4200, 999)])
def test_of_equal_logits_the_first_counts_within_tiles_and_beyond(vocab_size, num_programs):
    product = new_product(vocab_size, 16, torch.float32, bias=False)
    product.weight.round_().clamp_(-1, 1)
    product.weight[[5, -1]] = 2.0
    fused, chunked = new_heads(product, num_programs=num_programs)
    hidden = new_rows(16, product)[0].round()
    hidden[0] = 1.0  # here one of the first tokens and the last one are the top
    held = torch.zeros(16, dtype=torch.long, device=DEVICE)
    params = draw_params(16, temperature=0.0)
    seen, greedy = fused.statistics(hidden, held), fused.draw(hidden, params)
    logits = product(hidden).index_fill(1, torch.tensor(BANNED, device=DEVICE), -math.inf)
    is_top = logits == logits.amax(dim=1, keepdim=True)
    is_tie = is_top.sum(dim=1) > 1
    first = torch.where(is_top, torch.arange(vocab_size, device=DEVICE), vocab_size).amin(dim=1)
    assert first[0] == 5
    assert is_tie.any()
    assert greedy.token_id.equal(first)
    assert seen.top_id.equal(first)
    assert greedy.token_id.equal(chunked.draw(hidden, params, truncate=False).token_id)
    assert not seen.margin[is_tie].any()


@pytest.mark.gpu
@by_kernels
@pytest.mark.parametrize("scale", [1e-6, 1e4, 1e18])
def test_logits_may_be_as_large_or_small_as_they_like(scale):
    product = new_product(300, 20, torch.float32, bias=False)
    product.weight.mul_(scale)
    fused, chunked = new_heads(product, num_programs=2)
    hidden, held, may_delete = new_rows(8, product)
    held.fill_(9)
    seen = fused.statistics(hidden, held, may_delete)
    expected = chunked.statistics(hidden, held, None, may_delete)
    assert all(each.isfinite().all() for each in seen.columns())
    for name in ("log_top", "margin", "top_id", "entropy"):
        # The chunks' entropy is a difference of numbers as large as the logits.
        tolerance = max(1e-3, 1e-6 * scale) if name == "entropy" else 1e-3
        torch.testing.assert_close(
            getattr(seen, name), getattr(expected, name), rtol=1e-3, atol=tolerance
        )
    torch.testing.assert_close(seen.log_held, expected.log_held, rtol=1e-4, atol=1e-4)
    if scale > 1:
        assert (seen.entropy < 1e-3).all()
    params = draw_params(8)
    drawn = fused.draw(hidden, params, may_delete)
    assert drawn.token_id.equal(
        chunked.draw(hidden, params, truncate=False, may_delete=may_delete).token_id
    )


@pytest.mark.gpu
@by_kernels
def test_the_last_token_that_is_not_banned_is_certain():
    product = new_product(200, 8, torch.float32, bias=True)
    allowed = 150
    banned = torch.tensor([each for each in range(200) if each != allowed], device=DEVICE)
    fused = FusedHead(torch.clone, product, banned, num_programs=2)
    hidden, held, _ = new_rows(3, product)
    seen, drawn = fused.statistics(hidden, held), fused.draw(hidden, draw_params(3))
    for ids in (seen.top_id, drawn.token_id):
        assert ids.tolist() == [allowed] * 3
    for certain in (seen.log_top.exp(), seen.margin, 1 - seen.entropy, drawn.log_prob.exp()):
        assert certain.tolist() == [1.0] * 3


@pytest.mark.gpu
@by_kernels
def test_a_row_of_nan_is_told_an_id_of_the_vocabulary():
    product = new_product(130, 8, torch.float32, bias=False)
    fused, _ = new_heads(product)
    hidden = torch.full((3, 8), math.nan, device=DEVICE)
    held = torch.zeros(3, dtype=torch.long, device=DEVICE)
    ids = [fused.statistics(hidden, held).top_id, fused.draw(hidden, draw_params(3)).token_id]
    assert all(0 <= each < 130 for each in torch.cat(ids).tolist())


@pytest.mark.gpu
@by_kernels
def test_no_rows_have_no_results():
    product = new_product(30, 8, torch.float32, bias=False)
    fused, chunked = new_heads(product)
    hidden, held, may_delete = new_rows(0, product)
    seen = chunked.statistics(hidden, held, None, may_delete)
    expect_alike(fused.statistics(hidden, held, may_delete), seen, torch.float32)
    params = draw_params(0)
    drawn = chunked.draw(hidden, params, truncate=False)
    expect_alike(fused.draw(hidden, params), drawn, torch.float32)
