"""Statistics and draws against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusiongpt.engine import sampling
from diffusiongpt.engine.bias import BiasList, RowBias
from diffusiongpt.engine.randomness import Purpose, counter_keys, gumbel
from diffusiongpt.engine.rows import DrawParams
from diffusiongpt.engine.sampling import (
    BANNED,
    Head,
    draw_tokens,
    row_statistics,
    truncated,
)


def random_logits(rows: int = 20, vocabulary: int = 50, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def draw_params(
    rows: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
) -> DrawParams:
    return DrawParams(
        counter_keys(torch.tensor(seed), Purpose.DRAW, torch.arange(rows)),
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        torch.full((rows,), top_k),
        torch.full((rows,), min_p),
    )


def test_statistics_are_those_of_the_softmax():
    logits = random_logits()
    logits[:, 3] = BANNED
    statistics = row_statistics(logits, logits.argmax(dim=-1))
    probability = logits.softmax(dim=-1)
    top = probability.topk(2, dim=-1).values
    expected = torch.distributions.Categorical(probability).entropy()
    assert torch.allclose(statistics.log_top.exp(), top[:, 0], atol=1e-5)
    assert torch.allclose(statistics.margin, top[:, 0] - top[:, 1], atol=1e-5)
    assert torch.allclose(statistics.entropy, expected, atol=1e-4)
    assert statistics.top_id.equal(logits.argmax(dim=-1))


def test_a_draw_is_the_argmax_of_tempered_logits_and_noise():
    logits, params = random_logits(), draw_params(20, temperature=0.7)
    expected = (logits / 0.7 + gumbel(params.key, 50)).argmax(dim=-1)
    draws = draw_tokens(logits, params, truncate=False)
    assert draws.token_id.equal(expected)
    assert torch.allclose(
        draws.log_prob, logits.log_softmax(dim=-1).gather(1, expected[:, None])[:, 0], atol=1e-5
    )


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(40_000, 4)
    drawn = draw_tokens(logits, draw_params(40_000, seed=5), truncate=False).token_id
    share = torch.bincount(drawn, minlength=4) / 40_000
    assert torch.allclose(share, logits[0].softmax(dim=-1), atol=4 / math.sqrt(40_000))


def test_temperature_zero_is_greedy_and_agrees_with_the_statistics_on_ties():
    logits = random_logits().round()  # rounded so that ties occur
    drawn = draw_tokens(logits, draw_params(20, temperature=0.0), truncate=False)
    assert drawn.token_id.equal(row_statistics(logits, logits.argmax(dim=-1)).top_id)
    assert torch.allclose(drawn.log_prob, row_statistics(logits, logits.argmax(dim=-1)).log_top)


def reference_truncation(logits: Tensor, temperature: float, top_p: float, top_k: int) -> set[int]:
    order = sorted(range(len(logits)), key=lambda token: (-logits[token].item(), token))
    kept = order[:top_k] if top_k else order
    weights = (logits[kept] / temperature).softmax(dim=-1)
    total, chosen = 0.0, set()
    for token, weight in zip(kept, weights.tolist(), strict=True):
        if chosen and top_p < 1.0 and total >= top_p:
            break
        chosen.add(token)
        total += weight
    return chosen


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (1.0, 5), (0.7, 10), (0.01, 0), (0.5, 1)])
def test_truncation_matches_the_plain_loop(temperature: float, top_p: float, top_k: int):
    logits = random_logits(rows=30)
    kept = truncated(logits, draw_params(30, temperature=temperature, top_p=top_p, top_k=top_k))
    for row in range(30):
        expected = reference_truncation(logits[row], temperature, top_p, top_k)
        assert set((kept[row] > BANNED).nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
def test_min_p_leaves_out_what_is_too_improbable_beside_the_best(temperature: float, min_p: float):
    logits = random_logits(rows=30)
    kept = truncated(logits, draw_params(30, temperature=temperature, min_p=min_p)) > BANNED
    probability = (logits / temperature).softmax(dim=-1)
    expected = probability >= min_p * probability.amax(dim=-1, keepdim=True)
    assert kept.equal(expected)
    assert kept.any(dim=-1).all()


def test_bias_changes_statistics_and_draws_as_other_logits_would():
    weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(23, 8, generator=torch.Generator().manual_seed(2))
    slot = torch.arange(23) % 2
    lists = BiasList(
        torch.tensor([[3, 9, 0], [7, 0, 0]]), torch.tensor([[5.0, -100, 0], [2, 0, 0]])
    )
    dense = torch.zeros(2, 50).scatter_add_(1, lists.token_id, lists.value)[slot]
    banned = torch.tensor([7])
    head = Head(lambda rows: rows @ weight, banned, chunk=5, pad=False)
    plain = Head(lambda rows: rows.clone(), banned, chunk=64, pad=False)
    column = torch.arange(23) % 3
    credit = BiasList(torch.full((2, 3, 1), 5), torch.arange(6.0).view(2, 3, 1))
    dense[torch.arange(23), 5] += credit.value[slot, column, 0]
    bias = RowBias(slot, column, (lists,), credit)
    held = torch.zeros(23, dtype=torch.long)
    params = draw_params(23)
    expected = row_statistics((hidden @ weight + dense).index_fill_(1, banned, BANNED), held)
    assert head.statistics(hidden, held, bias).entropy.allclose(expected.entropy, atol=1e-5)
    drawn = head.draw(hidden, params, truncate=False, bias=bias, num_top=3)
    again = plain.draw(hidden @ weight + dense, params, truncate=False, num_top=3)
    assert drawn.token_id.equal(again.token_id)
    assert drawn.top_id is not None
    assert again.top_id is not None
    assert drawn.top_id.equal(again.top_id)
    assert not (drawn.top_id == 7).any()


def test_the_head_gives_the_same_whatever_the_chunk():
    weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(23, 8, generator=torch.Generator().manual_seed(2))
    banned = torch.tensor([0, 7])
    params = draw_params(23, temperature=0.8, top_k=9)
    whole = Head(lambda rows: rows @ weight, banned, chunk=64, pad=False)
    pieces = Head(lambda rows: rows @ weight, banned, chunk=5, pad=True)
    assert pieces.draw(hidden, params, truncate=True).token_id.equal(
        whole.draw(hidden, params, truncate=True).token_id
    )
    assert torch.allclose(
        pieces.statistics(hidden, torch.zeros(len(hidden), dtype=torch.long)).entropy,
        whole.statistics(hidden, torch.zeros(len(hidden), dtype=torch.long)).entropy,
    )


def test_no_call_of_the_head_exceeds_the_chunk_and_padding_fills_it():
    seen: list[int] = []

    def project(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows.new_zeros(len(rows), 4)

    none = torch.tensor([], dtype=torch.long)
    Head(project, none, chunk=10, pad=False).statistics(
        torch.zeros(23, 2), torch.zeros(23, dtype=torch.long)
    )
    Head(project, none, chunk=10, pad=True).statistics(
        torch.zeros(23, 2), torch.zeros(23, dtype=torch.long)
    )
    assert seen == [10, 10, 3, 10, 10, 10]


def test_banned_tokens_are_never_drawn():
    banned = torch.tensor([1, 2])
    head = Head(lambda rows: rows.new_zeros(len(rows), 4), banned, chunk=512, pad=False)
    draws = head.draw(torch.zeros(500, 2), draw_params(500, temperature=2.0), truncate=False)
    assert set(draws.token_id.tolist()) == {0, 3}
    assert torch.allclose(draws.log_prob.exp(), torch.tensor(0.5))


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 9])
def test_rows_drawn_in_parts_are_those_drawn_together(monkeypatch, num_rows, truncate):
    monkeypatch.setattr(sampling, "_NUM_CACHED", 4 * 30)
    torch.manual_seed(num_rows)
    logits = torch.randn(num_rows, 30)
    real, whole = torch.rand(num_rows), torch.arange(num_rows)
    params = DrawParams(whole * 7919, real * 2, real, whole % 5, real / 9)
    together = draw_tokens(
        logits.index_fill(1, torch.tensor([2]), BANNED), params, truncate=truncate
    )
    head = Head(torch.clone, torch.tensor([2]), chunk=8, pad=False)
    parts = head.draw(logits, params, truncate=truncate)
    assert torch.equal(parts.token_id, together.token_id)
    assert torch.equal(parts.log_prob, together.log_prob)
