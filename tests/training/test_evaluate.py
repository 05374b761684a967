import itertools
import math

import pytest
import torch

from diffusiongpt.training.evaluate import (
    counted_tokens,
    evaluate_bound,
    row_bounds,
    stratified_grid,
    summarise,
)
from diffusiongpt.training.ngram import NgramModel
from diffusiongpt.training.noise import keyed_generator
from diffusiongpt.training.sample import canvas_logits, sample


class Posterior:
    """Denoises with the exact posterior of a table of probabilities over sequences of 4 tokens."""

    objective = "masked"
    block_length = 1

    def __init__(self, exact):
        self.exact = exact
        generator = torch.Generator().manual_seed(3)
        table = torch.rand(81, generator=generator, dtype=torch.float64) ** 3
        self.table = (table / table.sum()).view(3, 3, 3, 3)

    def nll(self, tokens, segments, masked):
        losses = []
        for row, hidden in zip(tokens.tolist(), masked.tolist(), strict=True):
            for position in range(4):
                if hidden[position]:
                    visible = hidden if self.exact else [True] * 4
                    losses.append(-math.log(self.conditional(row, visible, position)))
        return torch.tensor(losses)

    def conditional(self, row, hidden, position):
        index = [slice(None) if hide else token for hide, token in zip(hidden, row, strict=True)]
        joint = self.table[tuple(index)]
        rest = sum(hidden[:position])
        marginal = joint.movedim(rest, 0).flatten(1).sum(1) if joint.dim() > 1 else joint
        return float(marginal[row[position]] / marginal.sum())


def toy_bounds(exact):
    rows = torch.tensor(list(itertools.product(range(3), repeat=4)))
    model = Posterior(exact)
    everything = torch.ones_like(rows, dtype=torch.bool)
    bounds = row_bounds(model, rows, torch.ones_like(rows), everything, draws=128, seed=1)
    return bounds, -model.table.flatten().log()


def test_the_bound_of_the_exact_posterior_is_the_exact_likelihood():
    bounds, exact = toy_bounds(exact=True)
    assert float(((-exact).exp() * (bounds - exact)).sum()) == pytest.approx(0, abs=0.03)
    assert float((bounds - exact).abs().mean()) < 0.5  # the noise of 128 draws


def test_the_bound_of_any_other_denoiser_lies_above_the_exact_likelihood_on_average():
    bounds, exact = toy_bounds(exact=False)
    weights = (-exact).exp()
    assert float((weights * (bounds - exact)).sum()) > 0.01


def test_one_token_blocks_give_the_autoregressive_likelihood(make_denoiser):
    denoiser = make_denoiser("block", block_length=1)
    tokens = torch.randint(6, 250, (2, 16))
    everything = torch.ones_like(tokens, dtype=torch.bool)
    bounds = row_bounds(denoiser, tokens, torch.ones_like(tokens), everything, draws=2, seed=0)
    expected = torch.zeros(2)
    for position in range(16):
        canvas = tokens[:, : position + 1].clone()
        canvas[:, position] = denoiser.mask_token_id
        logits = canvas_logits(denoiser, canvas)[:, position]
        expected -= logits.log_softmax(-1)[torch.arange(2), tokens[:, position]].detach()
    torch.testing.assert_close(bounds.float(), expected, rtol=1e-4, atol=1e-3)


def test_a_block_is_predicted_in_training_as_it_is_sampled(make_denoiser):
    denoiser = make_denoiser("block", block_length=4)
    tokens = torch.randint(6, 250, (1, 32))
    masked = torch.zeros(1, 32, dtype=torch.bool)
    masked[0, [17, 18]] = True
    trained = denoiser.head(denoiser.hidden(tokens, torch.ones_like(tokens), masked)[0, 16:20])
    canvas = tokens[:, :20].masked_fill(masked[:, :20], denoiser.mask_token_id)
    sampled = canvas_logits(denoiser, canvas)[0, 16:20]
    keep = [i for i in range(sampled.shape[1]) if i not in denoiser.banned.tolist()]
    torch.testing.assert_close(trained[:, keep], sampled[:, keep], rtol=1e-3, atol=1e-3)


def test_one_row_alone_has_no_standard_error():
    nats, counts = torch.tensor([6.0, 2.0]), torch.tensor([2.0, 2.0])
    one, two = summarise(nats[:1], counts[:1], 1, counts[:1]), summarise(nats, counts, 1)
    assert str(one).startswith("3.0000 ± unknown nats/token, 4.3281 ± unknown bits/byte")
    assert str(two).startswith("2.0000 ± 1.0000 nats/token (")


def test_the_grid_visits_each_part_once():
    grid = stratified_grid(8, 5, keyed_generator(0, 0))
    assert (grid * 8).floor().sort(0).values.equal(torch.arange(8.0).double()[:, None].expand(8, 5))


def test_a_repeated_ending_counts_once():
    tokens = torch.tensor([[7, 7, 3, 3, 8, 3, 3, 3]])
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0]])
    maskable = torch.tensor([[True] * 7 + [False]])
    counted = counted_tokens(tokens, segments, maskable, (1, 3))
    assert counted.tolist() == [[True, True, True, False, True, True, False, False]]


def test_the_bound_is_the_same_when_computed_twice(make_denoiser, make_config, tokenizer):
    from diffusiongpt.training.data import build_dataset

    dataset = build_dataset(make_config().data, "pretrain", "block", 4, tokenizer, 0)
    denoiser = make_denoiser()
    first = evaluate_bound(denoiser, dataset, (1, 3), draws=2, max_rows=8, batch_size=4)
    assert first == evaluate_bound(denoiser, dataset, (1, 3), draws=2, max_rows=8, batch_size=4)
    assert first.rows == 8
    assert first.standard_error > 0


def test_the_ngram_matches_its_formula_on_a_small_text():
    model = NgramModel(order=2, vocab_size=5, discount=0.5).fit([[0, 1, 0, 1, 2]])
    unigram = (2 - 0.5 + 0.5 * 3 / 5) / 5  # of token 1: twice among five, three kinds
    bigram = (2 - 0.5) / 2 + 0.5 * 1 / 2 * unigram  # 1 after 0: always
    assert model.nll([[0, 1]])[1] == pytest.approx(-math.log(bigram))


def test_the_ngram_is_a_distribution():
    generator = torch.Generator().manual_seed(0)
    documents = torch.randint(0, 6, (20, 12), generator=generator).tolist()
    model = NgramModel(order=3, vocab_size=6).fit(documents)
    for context in ([0, 1], [5, 5], [2, 3]):
        total = sum(math.exp(-model.nll([[*context, word]])[2]) for word in range(6))
        assert total == pytest.approx(1.0)


def test_a_sample_ends_before_its_stop_token_and_repeats_with_its_seed(make_denoiser):
    denoiser = make_denoiser()
    first = sample(denoiser, [6, 7, 8], 12, stop_ids=[], seed=4)
    assert first == sample(denoiser, [6, 7, 8], 12, stop_ids=[], seed=4)
    assert len(first) >= 12
    assert not set(first) & set(denoiser.banned.tolist())
    assert (
        sample(denoiser, [6, 7, 8], 12, stop_ids=[first[3]], seed=4)
        == first[: first.index(first[3])]
    )
