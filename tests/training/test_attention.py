import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from diffusiongpt.training import attention, products
from diffusiongpt.training.attention import (
    IMPLEMENTATION,
    block_masks,
    layer_masks,
    training_attention,
)
from diffusiongpt.training.tiles import TilePlan, may_see, plan_tiles, stacks_of


def plain_masks(segments, block_length, window):
    """The same rules, one pair of positions at a time, over the 2L positions [x_t ; x_0]."""
    rows, length = segments.shape
    table = torch.zeros(rows, 2 * length, 2 * length, dtype=torch.bool)
    for row in range(rows):
        for query in range(2 * length):
            for key in range(2 * length):
                i, j = query % length, key % length
                if segments[row, i] != segments[row, j]:
                    continue
                if window is not None and abs(i - j) > window:
                    continue
                same, before = (
                    i // block_length == j // block_length,
                    j // block_length < i // block_length,
                )
                noisy_query, noisy_key = query < length, key < length
                if noisy_query:
                    table[row, query, key] = same if noisy_key else before
                else:
                    table[row, query, key] = not noisy_key and (same or before)
    return table


SEGMENTS = torch.tensor(
    [[1] * 8 + [2] * 16 + [3] * 8, [1] * 24 + [0] * 8, [1] * 32], dtype=torch.long
)


@pytest.mark.parametrize("window", [None, 3, 8])
@pytest.mark.parametrize("block_length", [1, 4, 8])
def test_the_mask_matches_the_plain_loop(block_length, window):
    everywhere = torch.arange(64)
    expected = plain_masks(SEGMENTS, block_length, window)
    two = may_see(SEGMENTS, everywhere, everywhere, block_length, window, True)
    assert two.equal(expected)
    one = may_see(SEGMENTS, everywhere[:32], everywhere[:32], block_length, window, False)
    assert one.equal(expected[:, 32:, 32:])


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize(("block_length", "window"), [(4, 8), (4, 6), (8, 8), (1, 16), (4, 20)])
@pytest.mark.parametrize("masks_of", [block_masks, layer_masks])
def test_attention_of_two_streams_equals_dense_attention(masks_of, kind, block_length, window):
    query, key, value = torch.randn(3, 3, 2, 64, 8).unbind(0)
    masks = masks_of(SEGMENTS, block_length, window, True, torch.float32)[kind]
    assert isinstance(masks, TilePlan) == (masks_of is layer_masks)
    out, _ = training_attention(None, query, key, value, masks, scaling=0.3)
    allowed = plain_masks(SEGMENTS, block_length, window if kind[0] == "s" else None)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=allowed[:, None], scale=0.3
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def long_rows(length):
    segments = torch.ones(2, length, dtype=torch.long)
    segments[0, length // 3 // 8 * 8 :] = 2
    segments[1, -40:] = 0
    return segments


def tensors(length, two_streams, dtype=torch.float32, size=16):
    """q, k, v (2, 3, T, `size`) that need gradients, and a gradient (2, T, 3, `size`)."""
    shape = (2, length * (2 if two_streams else 1), 3, size)
    drawn = [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(4)]
    return [x.transpose(1, 2).requires_grad_() for x in drawn[:3]], drawn[3]


def with_gradients(inputs, grad, masks):
    out, _ = training_attention(None, *inputs, masks, scaling=inputs[0].shape[3] ** -0.5)
    return out, *torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize(
    ("block_length", "two_streams"),
    [(0, False), (1, False), (8, False), (160, False), (1, True), (8, True), (160, True)],
)
@pytest.mark.parametrize("window", [None, 0, 16, 24, 200])
def test_tiles_give_dense_attention_and_its_gradients(block_length, window, two_streams):
    length = 320  # several chunks; not whole ones of 24, nor of 128
    segments, everywhere = long_rows(length), torch.arange(length * (1 + two_streams))
    inputs, grad = tensors(length, two_streams)
    plan = plan_tiles(segments, block_length, window, two_streams, torch.float32)
    dense = may_see(segments, everywhere, everywhere, block_length, window, two_streams)
    found = with_gradients(inputs, grad, plan)
    expected = with_gradients(inputs, grad, dense[:, None])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_tiles_leave_out_what_is_always_hidden():
    sliding = stacks_of(512, 8, 32, True)
    assert [[tile.shape for tile in tiles] for tiles in sliding] == [[(64, 64)], [(64, 96)] * 15]
    full = stacks_of(512, 8, None, True)
    assert [[tile.shape for tile in tiles] for tiles in full] == [
        [(256, 128 * before)] for before in (2, 3, 4, 5)
    ]


def test_gradients_of_tiles_are_those_of_differences():
    inputs, _ = tensors(16, True, torch.float64, size=2)
    inputs = [x.detach()[:1].requires_grad_() for x in inputs]
    for window in (None, 4):
        plan = plan_tiles(SEGMENTS[:1, :16], 4, window, True, torch.float64)
        torch.autograd.gradcheck(
            lambda q, k, v, plan=plan: products.attend_tiles(q, k, v, plan, 0.7),
            inputs,
            fast_mode=True,
        )


@pytest.mark.parametrize("window", [None, 32])
def test_bf16_products_are_about_as_exact_as_sdpa(window):
    segments, length = long_rows(320), 320
    inputs, grad = tensors(length, True, torch.bfloat16, size=64)
    everywhere = torch.arange(2 * length)
    dense = may_see(segments, everywhere, everywhere, 8, window, True)[:, None]
    plan = plan_tiles(segments, 8, window, True, torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(wide, grad.double(), dense)
    theirs, ours = (with_gradients(inputs, grad, masks) for masks in (dense, plan))
    for true, one, other in zip(exact, theirs, ours, strict=True):
        of_sdpa, of_tiles = ((x.double() - true).norm() / true.norm() for x in (one, other))
        assert of_tiles < 2.5 * of_sdpa
        assert of_tiles < 0.01


@pytest.mark.parametrize("bound", ["KEPT_BYTES", "SCORES_AT_ONCE"])
def test_bounding_the_memory_changes_nothing(monkeypatch, bound):
    inputs, grad = tensors(320, True, torch.bfloat16)
    plan = plan_tiles(long_rows(320), 8, None, True, torch.bfloat16)
    expected = with_gradients(inputs, grad, plan)
    monkeypatch.setattr(products, bound, 0)
    found = with_gradients(inputs, grad, plan)
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def test_autocast_does_not_reach_into_the_products():
    inputs, grad = tensors(64, True, torch.bfloat16)
    plan = plan_tiles(long_rows(64), 8, None, True, torch.bfloat16)
    expected = with_gradients(inputs, grad, plan)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(inputs, grad, plan)
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("tiled", [True, False])
def test_our_attention_gives_the_logits_of_the_stock_one(make_denoiser, monkeypatch, tiled):
    network = make_denoiser("masked").network
    ids = torch.randint(6, 200, (2, 32))
    segments = torch.ones_like(ids)
    monkeypatch.setattr(attention, "by_tiles", lambda device: tiled)
    masks = layer_masks(segments, 0, network.config.sliding_window, False, torch.float32)
    ours = network(input_ids=ids, attention_mask=masks).logits
    assert network.config._attn_implementation == IMPLEMENTATION
    network.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, network(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["block", "masked", "causal"])
def test_products_and_sdpa_give_the_same_loss_and_gradients(make_denoiser, monkeypatch, objective):
    denoiser = make_denoiser(objective)
    tokens, segments = torch.randint(6, 200, (3, 32)), SEGMENTS
    batch = {"tokens": tokens, "segments": segments, "maskable": segments > 0}
    batch |= {"masked": batch["maskable"] & (torch.rand(3, 32) < 0.5)}
    found = []
    for tiled in (True, False):
        monkeypatch.setattr(attention, "by_tiles", lambda device, tiled=tiled: tiled)
        loss = denoiser(**batch, weights=torch.ones(3, 32))
        parameters = [p for p in denoiser.parameters() if p.requires_grad]
        found.append([loss, *torch.autograd.grad(loss, parameters)])
    for ours, theirs in zip(*found, strict=True):
        largest = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * largest)
