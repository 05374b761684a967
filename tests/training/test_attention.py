import pytest
import torch

from diffusiongpt.training.attention import (
    IMPLEMENTATION,
    StreamMasks,
    allowed_pairs,
    block_masks,
    training_attention,
)


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
    clean, earlier, own = allowed_pairs(SEGMENTS, block_length, window)
    top = torch.cat([own, earlier], dim=2)
    bottom = torch.cat([torch.zeros_like(clean), clean], dim=2)
    expected = plain_masks(SEGMENTS, block_length, window)
    assert torch.cat([top, bottom], dim=1).equal(expected)


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize(("block_length", "window"), [(4, 8), (4, 6), (8, 8), (1, 16), (4, 20)])
def test_attention_of_two_streams_equals_dense_attention(kind, block_length, window):
    query, key, value = torch.randn(3, 3, 2, 64, 8).unbind(0)
    masks = block_masks(SEGMENTS, block_length, window, True, torch.float32)[kind]
    assert isinstance(masks, StreamMasks)
    out, _ = training_attention(None, query, key, value, masks, scaling=0.3)
    allowed = plain_masks(SEGMENTS, block_length, window if kind[0] == "s" else None)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed[:, None], scale=0.3
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_our_attention_gives_the_logits_of_the_stock_one(make_denoiser):
    network = make_denoiser("masked").network
    ids = torch.randint(6, 200, (2, 32))
    segments = torch.ones_like(ids)
    from diffusiongpt.training.attention import bidirectional_masks

    masks = bidirectional_masks(segments, network.config.sliding_window, torch.float32)
    ours = network(input_ids=ids, attention_mask=masks).logits
    assert network.config._attn_implementation == IMPLEMENTATION
    network.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, network(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
