"""Choosing positions, against a plain loop that reads like the definition."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusiongpt.engine.commit import PolicyRows, choose_positions, commits_due
from diffusiongpt.engine.history import earn_credit
from diffusiongpt.engine.policies import PRESETS, Policy
from diffusiongpt.engine.rows import RowStatistics

HALF = {"max_share": 0.5, "max_least": 3}


def policy_rows(policies: list[Policy], gaps: list[int]) -> PolicyRows:
    def column(name: str) -> Tensor:
        return torch.tensor([float(getattr(policy, name)) for policy in policies])

    return PolicyRows(
        confidence=column("confidence"),
        margin=column("margin"),
        entropy=column("entropy"),
        hitting_time=column("hitting_time"),
        position_bias=column("position_bias"),
        credit=column("credit"),
        log_threshold=column("threshold").clamp(min=0).log(),
        factor=column("factor"),
        entropy_bound=column("entropy_bound"),
        max_per_step=column("max_per_step").long(),
        max_share=column("max_share"),
        max_least=column("max_least").long(),
        adaptive=column("adaptive").bool(),
        timed=column("timed").bool(),
        stable=column("stable").long(),
        gap=torch.tensor(gaps),
    )


def reference(
    policy: Policy,
    gap: int,
    rows: list[dict[str, float]],
    candidates: list[int],
    at_least: int,
    time: float,
    steady: list[bool],
) -> set[int]:
    """One slot: rank, keep the gap, walk down while the gates hold, then fill up the budget."""

    def score(i: int) -> float:
        row = rows[i]
        return float(
            torch.tensor(policy.confidence * row["log_top"])
            + policy.margin * row["margin"]
            - policy.entropy * row["entropy"]
            + policy.hitting_time * row["hitting"]
            - torch.tensor(policy.position_bias) * (i - candidates[0])
        )

    ranked = sorted(candidates, key=lambda i: (not steady[i], -score(i), i))
    place = {position: index for index, position in enumerate(ranked)}
    spaced = [
        i
        for i in ranked
        if all(place[j] > place[i] for j in candidates if j != i and abs(i - j) < gap)
    ]
    order = spaced + [i for i in ranked if i not in spaced]
    chosen: list[int] = []
    limit = len(candidates)
    if policy.max_per_step:
        limit = min(max(int(policy.max_share * limit), policy.max_least), policy.max_per_step)
    if policy.adaptive or policy.timed:
        entropies: list[float] = []
        for i in order:
            entropies.append(rows[i]["entropy"])
            holds = (
                i in spaced
                and steady[i]
                and math.exp(rows[i]["log_top"]) > policy.threshold
                and (len(entropies) + 1) * (1 - math.exp(rows[i]["log_top"])) < policy.factor - 1e-6
                and sum(entropies) - max(entropies) <= policy.entropy_bound + 1e-6
                and (not policy.timed or rows[i]["hitting"] >= time)
                and len(chosen) < limit
            )
            if not holds:
                break
            chosen.append(i)
    return set(chosen) | set(order[:at_least])


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_choosing_matches_the_plain_loop(name: str, data: st.DataObject):
    seed = data.draw(st.integers(0, 10_000))
    gap = data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(seed)
    num_slots, width = 3, 12
    # Rounded so that ties occur; the entropy of ties adds up exactly in steps of 1/8.
    top = ((torch.rand(num_slots, width, generator=generator) * 8).round() / 8).clamp(0.125, 1.0)
    margin = (torch.rand(num_slots, width, generator=generator) * 8).round() / 8
    entropy = (torch.rand(num_slots, width, generator=generator) * 8).round() / 8
    hitting = torch.rand(num_slots, width, generator=generator)
    candidate = torch.rand(num_slots, width, generator=generator) < 0.7
    candidate[:, 5] = True
    at_least = torch.randint(1, 5, (num_slots,), generator=generator)
    time = torch.rand(num_slots, generator=generator)
    steady = torch.rand(num_slots, width, generator=generator) < data.draw(
        st.sampled_from([0.5, 1.0])
    )
    limits = data.draw(st.sampled_from([{}, {"max_per_step": 2}, {"max_per_step": 7} | HALF]))
    policy = dataclasses.replace(PRESETS[name], **limits)
    chosen = choose_positions(
        policy_rows([policy] * num_slots, [gap, 1, gap]),
        RowStatistics(
            top.log(),
            margin,
            entropy,
            torch.zeros_like(top, dtype=torch.long),
            torch.zeros_like(top),
        ),
        hitting,
        candidate,
        at_least=at_least,
        time=time,
        max_gap=gap,
        steady=None if steady.all() else steady,
    )
    for slot in range(num_slots):
        rows = [
            {
                "log_top": top.log()[slot, i].item(),
                "margin": margin[slot, i].item(),
                "entropy": entropy[slot, i].item(),
                "hitting": hitting[slot, i].item(),
            }
            for i in range(width)
        ]
        expected = reference(
            policy,
            [gap, 1, gap][slot],
            rows,
            candidate[slot].nonzero()[:, 0].tolist(),
            int(at_least[slot]),
            time[slot].item(),
            steady[slot].tolist(),
        )
        assert set(chosen[slot].nonzero()[:, 0].tolist()) == expected


@settings(max_examples=50, deadline=None)
@given(num_masked=st.integers(1, 300), data=st.data())
def test_a_budget_is_spent_exactly_the_remainder_first(num_masked: int, data: st.DataObject):
    steps = data.draw(st.integers(1, num_masked))
    left, commits = num_masked, []
    for step in range(steps):
        due = int(commits_due(torch.tensor([left]), torch.tensor([steps - step])))
        commits.append(due)
        left -= due
    base, extra = divmod(num_masked, steps)
    assert commits == [base + int(step < extra) for step in range(steps)]


def test_the_first_choice_is_committed_even_when_no_gate_holds():
    statistics = RowStatistics(
        torch.tensor([[0.2, 0.3]]).log(),
        torch.zeros(1, 2),
        torch.ones(1, 2),
        torch.zeros(1, 2, dtype=torch.long),
        torch.zeros(1, 2),
    )
    chosen = choose_positions(
        policy_rows([PRESETS["threshold"]], [1]),
        statistics,
        torch.zeros(1, 2),
        torch.ones(1, 2, dtype=torch.bool),
        at_least=torch.tensor([1]),
        time=torch.tensor([0.0]),
        max_gap=1,
    )
    assert chosen.tolist() == [[False, True]]


@settings(max_examples=50, deadline=None)
@given(tops=st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 1.0)), min_size=1, max_size=12))
def test_credit_is_that_of_the_plain_loop_for_the_tokens_with_the_most(
    tops: list[tuple[int, float]],
):
    ids, credit = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3)
    plain: dict[int, float] = {}
    for token, top in tops:
        ids, credit = earn_credit(ids, credit, torch.tensor([token]), torch.tensor([top]).log())
        plain = {each: 0.8 * value for each, value in plain.items()}
        if token not in plain and len(plain) == 3:
            del plain[min(plain, key=lambda each: plain[each])]
        plain[token] = plain.get(token, 0.0) + top**0.2
    ours = {
        each: value
        for each, value in zip(ids[0].tolist(), credit[0].tolist(), strict=True)
        if value
    }
    assert ours == pytest.approx(plain)
