import math

import pytest
import torch

from diffusiongpt.training.config_file import from_mapping
from diffusiongpt.training.forward import EditTokens, corruption_of
from diffusiongpt.training.loss import LOSS_NORMS, nll_of_logits, weighted_loss
from diffusiongpt.training.noise import corrupt


@pytest.mark.parametrize("noise", ["exact_count", "bernoulli"])
@pytest.mark.parametrize("time", [0.01, 0.3, 0.5, 0.9, 1.0])
def test_the_loss_of_a_model_that_knows_nothing_is_log_vocab_at_every_t(time, noise):
    vocabulary, banned = 50, torch.tensor([0, 3])
    maskable = torch.ones(400, 32, dtype=torch.bool)
    maskable[:, :5] = False
    scores = torch.rand(400, 32, generator=torch.Generator().manual_seed(0))
    masked, weights = corrupt(maskable, torch.full((400, 1), time), scores, noise)
    targets = torch.randint(4, vocabulary, (400, 32))
    hidden = torch.zeros(int(masked.sum()), 1)
    loss = weighted_loss(
        hidden, targets[masked], weights[masked], lambda h: h.expand(-1, vocabulary), banned
    )
    expected_masks = 400 * 27 * time
    tolerance = 1e-5 if noise == "exact_count" else 4 / expected_masks**0.5
    assert float(loss / maskable.sum()) == pytest.approx(math.log(vocabulary - 2), rel=tolerance)


@pytest.mark.parametrize("norm", sorted(LOSS_NORMS))
def test_norms_are_those_of_a_plain_loop(norm):
    generator = torch.Generator().manual_seed(0)
    segments = torch.tensor([[1] * 3 + [2] * 8 + [0], [1] * 12, [1] * 2 + [2] * 10, [0] * 12])
    maskable = (torch.rand(4, 12, generator=generator) < 0.7) & (segments > 0)
    maskable[2, :2] = False  # a segment without a target
    losses = torch.rand(4, 12, generator=generator).masked_fill(~maskable, 0.0)
    texts = [
        [float(losses[row, i]) for i in range(12) if maskable[row, i] and segments[row, i] == text]
        for row in range(4)
        for text in (1, 2)
    ]
    texts = [each for each in texts if each]
    expected = {
        "token": sum(map(sum, texts)) / sum(map(len, texts)),
        "sequence": sum(sum(text) / len(text) for text in texts) / len(texts),
        "batch": sum(map(sum, texts)) / 3,
    }[norm]
    share, divisor = LOSS_NORMS[norm](maskable, segments)
    assert float((losses * share).sum() / divisor) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("edits", [False, True])
def test_a_sequence_of_a_batch_counts_alike_in_what_is_trained(edits):
    """Where nothing is known each text has the same loss, whatever is masked, moved or inserted."""
    diffusion = {"loss_norm": "sequence", "block_length": 4, "insertion_corruption": edits}
    diffusion |= {"deletion_corruption": edits, "corruption_prob": 0.5}
    if edits:
        diffusion |= {"edit_stage_start": 0.0, "anneal_corruption": False}
    config = from_mapping({"diffusion": diffusion, "data": {"max_seq_length": 32}})
    segments = torch.tensor([[1] * 8 + [2] * 24] * 3)
    inputs = {
        "tokens": torch.randint(10, 60, segments.shape),
        "segments": segments,
        "maskable": torch.ones_like(segments, dtype=torch.bool),
    }
    ids = EditTokens(mask=1, delete=2, ordinary=torch.arange(10, 60))
    drawn = corruption_of(inputs, config, ids, step=0, first_row=0, num_rows=3)
    for text, size in ((1, 8), (2, 24)):
        there = segments == text
        if edits:
            seen = drawn["visible"] & there
            assert drawn["visible_weight"][seen].unique().tolist() == pytest.approx([1 / size])
            added = drawn["masked"] & there
            assert (drawn["weights"][added] * size >= 1 - 1e-6).all()
        else:
            assert float(drawn["weights"][there].sum()) == pytest.approx(3, rel=1e-6)


def test_banned_ids_get_no_probability():
    logits = torch.randn(4, 6)
    nll = nll_of_logits(logits, torch.tensor([1, 2, 4, 5]), torch.tensor([0, 3]))
    expected = -logits[:, [1, 2, 4, 5]].log_softmax(-1)[torch.arange(4), torch.arange(4)]
    torch.testing.assert_close(nll, expected)


def test_chunks_change_neither_loss_nor_gradient():
    weight = torch.randn(7, 11, requires_grad=True)
    hidden = torch.randn(10, 7, requires_grad=True)
    targets, weights = torch.randint(1, 11, (10,)), torch.rand(10)
    results = []
    for chunk in (3, 100):
        loss = weighted_loss(
            hidden, targets, weights, lambda h: h @ weight, torch.tensor([0]), chunk=chunk
        )
        results.append((loss, *torch.autograd.grad(loss, (weight, hidden))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_only_masked_positions_pass_through_the_head(make_denoiser):
    denoiser = make_denoiser()
    tokens = torch.randint(6, 250, (2, 32))
    masked = torch.rand(2, 32) < 0.3
    seen = []
    denoiser.network.decoder.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    everything = torch.ones_like(masked)
    denoiser(tokens, torch.ones_like(tokens), everything, masked, masked.float())
    assert seen == [int(masked.sum())]


def test_the_last_layer_goes_on_with_the_noisy_stream_alone_and_the_loss_stays(make_denoiser):
    denoiser = make_denoiser("block")
    tokens = torch.randint(6, 200, (3, 32))
    batch = {"tokens": tokens, "segments": torch.ones_like(tokens), "maskable": tokens > 0}
    batch |= {"masked": torch.rand(3, 32) < 0.5, "weights": torch.rand(3, 32)}
    fed, found = [], []
    last = denoiser.network.base_model.layers[-1].mlp
    last.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape[1]))
    for narrows in (True, False):
        denoiser.narrows = narrows
        loss = denoiser(**batch)
        parameters = [p for p in denoiser.parameters() if p.requires_grad]
        found.append([loss, *torch.autograd.grad(loss, parameters)])
    assert fed == [32, 64]
    for ours, theirs in zip(*found, strict=True):
        largest = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * largest)
