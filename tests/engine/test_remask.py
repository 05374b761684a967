"""Masking filled positions again, against plain loops that read like the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.frame import Frame
from diffusiongpt.engine.params import EditParams, GenerationParams
from diffusiongpt.engine.policies import PRESETS, Policy
from diffusiongpt.engine.revise import (
    RevisionRows,
    choose_kept,
    filled_share,
    remask_chances,
    toss_remasks,
)
from diffusiongpt.engine.rows import RowStatistics

from toy_models import CausalHashModel, HashModel, probabilities, toy_engine


def revision_rows(policies: list[Policy]) -> RevisionRows:
    def column(name: str) -> Tensor:
        return torch.tensor([float(getattr(policy, name)) for policy in policies])

    return RevisionRows(
        log_edit_threshold=column("edit_threshold").log(),
        log_edit_margin=column("edit_margin").log(),
        log_doubt=column("doubt").log(),
        shadowed=column("shadowed").bool(),
        planned=column("planned").bool(),
        tosses=column("tosses").bool(),
        remask=column("remask"),
        remask_rescaled=column("remask_rescaled").bool(),
        remask_confidence=column("remask_confidence"),
        loop_start=column("loop_start"),
        loop_end=column("loop_end"),
        loop_alpha=column("loop_alpha"),
        max_rounds=column("max_rounds").long(),
    )


def plain_share(policy: Policy, time: float) -> float:
    """alpha(t) of ReMDM: linear, or up to alpha_on, then still, then up to 1."""
    if policy.loop_alpha == 1.0:
        return 1.0 - time
    if time > policy.loop_start:
        return (1.0 - time) * policy.loop_alpha / (1.0 - policy.loop_start)
    if time > policy.loop_end:
        return policy.loop_alpha
    return 1.0 - time * (1.0 - policy.loop_alpha) / policy.loop_end


def plain_chances(policy: Policy, step: int, steps: int) -> tuple[float, float]:
    time, later = 1.0 - (step - 1) / steps, 1.0 - step / steps
    alpha, alpha_later = plain_share(policy, time), plain_share(policy, later)
    most = min((1.0 - alpha_later) / alpha, 1.0) if alpha else float(alpha_later < 1.0)
    remask = policy.remask * most if policy.remask_rescaled else min(policy.remask, most)
    if policy.loop_alpha < 1.0 and not (time <= policy.loop_start and later >= policy.loop_end):
        remask = 0.0
    return remask, min((alpha_later - (1.0 - remask) * alpha) / (1.0 - alpha), 1.0)


TOSSING = [name for name, preset in PRESETS.items() if preset.tosses]


@pytest.mark.parametrize("name", TOSSING)
@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_the_chances_are_those_of_the_paper_and_keep_the_filled_share(name: str, steps: int):
    policy = PRESETS[name]
    rows = revision_rows([policy] * steps)
    step, total = torch.arange(1, steps + 1), torch.tensor([steps] * steps)
    remask, fill = remask_chances(rows, step, total)
    plain = torch.tensor([plain_chances(policy, k, steps) for k in range(1, steps + 1)])
    torch.testing.assert_close(torch.stack([remask, fill], dim=1), plain, rtol=1e-4, atol=1e-5)
    before, after = (
        filled_share(rows, 1.0 - (step - 1) / total),
        filled_share(rows, 1 - step / total),
    )
    torch.testing.assert_close(before * (1 - remask) + (1 - before) * fill, after)
    assert (remask[-1].item(), fill[-1].item()) == (0.0, pytest.approx(1.0))


def test_little_confidence_is_masked_again_more_often():
    policy = Policy(remask=0.5, remask_confidence=1.0)
    confidence = torch.tensor([[0.1, 0.9, 0.5, 0.2]])
    filled = torch.tensor([[True, True, False, True]])
    weight = [math.exp(-each) for each in (0.1, 0.9, 0.2)]
    chances = [0.2 * 3 * each / sum(weight) for each in weight]
    for coin in torch.linspace(0.01, 0.4, 20):
        chosen = toss_remasks(
            revision_rows([policy]), torch.tensor([0.2]), confidence, filled, coin.expand(1, 4)
        )
        first, second, third = (chance > coin.item() for chance in chances)
        assert chosen.tolist() == [[first, second, False, third]]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_plan_keeps_the_best_of_all_positions(data: st.DataObject):
    states = data.draw(st.lists(st.sampled_from(["masked", "filled", "given"]), min_size=1))
    tenths = st.integers(1, 10)
    top = [data.draw(tenths) / 10 for _ in states]
    held = [data.draw(tenths) / 10 for _ in states]
    steps = data.draw(st.integers(1, 9))
    step = data.draw(st.integers(1, steps))
    zeros = torch.zeros(1, len(states))
    statistics = RowStatistics(
        torch.tensor([top]).log(), zeros, zeros, zeros.long(), torch.tensor([held]).log()
    )
    masked = torch.tensor([[each == "masked" for each in states]])
    filled = torch.tensor([[each == "filled" for each in states]])
    kept = choose_kept(statistics, masked, filled, torch.tensor([step]), torch.tensor([steps]))
    ours = [i for i, each in enumerate(states) if each != "given"]
    num_kept = len(ours) - len(ours) * (steps - step) // steps
    value = {i: torch.tensor(top[i] if states[i] == "masked" else held[i]).item() for i in ours}
    best = sorted(ours, key=lambda i: (-value[i], i))[:num_kept]
    assert kept[0].nonzero()[:, 0].tolist() == sorted(best)


def plain_p2(model: HashModel, length: int, steps: int) -> list[int]:
    """Greedy P2 with the model as its own planner."""
    mask = model.mask_token_id
    ids = [mask] * length
    for step in range(1, steps + 1):
        chances = probabilities(model, ids)
        top, best = chances.max(dim=-1)
        value = [top[i] if ids[i] == mask else chances[i, ids[i]] for i in range(length)]
        kept = sorted(range(length), key=lambda i: (-value[i].item(), i))
        kept = kept[: length - length * (steps - step) // steps]
        ids = [
            mask if i not in kept else int(best[i]) if ids[i] == mask else ids[i]
            for i in range(length)
        ]
    return ids


@pytest.mark.parametrize("steps", [1, 3, 7, 12])
def test_p2_equals_the_plain_loop(steps: int):
    model = HashModel(vocab_size=12)
    params = GenerationParams(max_tokens=12, policy="p2", steps=steps, temperature=0.0)
    done = toy_engine(model).generate([[]], params)[0]
    assert list(done.token_ids) == plain_p2(model, 12, steps)
    assert done.usage.nfe == steps


def plain_verify(model: HashModel, length: int, threshold: float, edits: EditParams) -> list[int]:
    """Greedy: fill by threshold, then mask again what the full canvas doubts, and fill again."""
    mask = model.mask_token_id
    ids, step, rounds = [mask] * length, 0, 0
    seen: list[list[int]] = []
    while True:
        chances = probabilities(model, ids)
        top, best = chances.max(dim=-1)
        masked = [i for i in range(length) if ids[i] == mask]
        if masked:
            due = -(-len(masked) // max(length - step, 1))
            step = min(step + 1, length)
            ranked = sorted(masked, key=lambda i: (-top[i].item(), i))
            for i in {*ranked[:due], *(i for i in masked if top[i] > threshold)}:
                ids[i] = int(best[i])
        else:
            rounds += 1
            ids = [mask if chances[i, t] < edits.doubt else t for i, t in enumerate(ids)]
        if mask in ids:
            continue
        if ids in seen or rounds >= edits.max_rounds:
            return ids
        seen.append(ids[:])


@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize("doubt", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("max_rounds", [1, 4])
def test_verifying_equals_the_plain_loop(length: int, doubt: float, max_rounds: int):
    model = HashModel(vocab_size=12)
    edits = EditParams(threshold=1.0, doubt=doubt, max_rounds=max_rounds)
    params = GenerationParams(
        max_tokens=length, policy="verify", threshold=0.3, edits=edits, temperature=0.0
    )
    done = toy_engine(model).generate([[]], params)[0]
    assert list(done.token_ids) == plain_verify(model, length, 0.3, edits)


def plain_wino(
    model: HashModel, length: int, threshold: float, doubt: float, steps: int
) -> tuple[list[int], int, int]:
    """Greedy: fill by threshold, 20 at a time at most, and mask again what the rest of the canvas
    doubts, one fewer than the step before filled. Counts what was masked again, and forwards."""
    mask = model.mask_token_id
    ids, step, num_remasked, last_accept, nfe = [mask] * length, 0, 0, 30, 0
    while mask in ids:
        top, best = probabilities(model, ids).max(dim=-1)
        held = {
            i: probabilities(model, [*ids[:i], mask, *ids[i + 1 :]])[i, token].item()
            for i, token in enumerate(ids)
            if token != mask
        }
        masked = [i for i in range(length) if ids[i] == mask]
        due = -(-len(masked) // max(steps - step, 1))
        step = min(step + 1, steps)
        ranked = sorted(masked, key=lambda i: (-top[i].item(), i))
        max_accept = min(max(int(len(masked) * 0.7), 5), 20)
        accepted = [i for i in ranked if top[i] > threshold][:max_accept]
        chosen = {*ranked[:due], *accepted}
        doubted = sorted((i for i in held if held[i] < doubt), key=lambda i: (held[i], i))
        if len(doubted) >= last_accept:
            doubted = doubted[: last_accept - 1]
        if len(chosen) > 1 and step < steps:
            for i in doubted:
                ids[i] = mask
            num_remasked += len(doubted)
        for i in chosen:
            ids[i] = int(best[i])
        last_accept = len(chosen)
        nfe += 1
    return ids, num_remasked, nfe


@pytest.mark.parametrize("length", [1, 5, 12, 40])
@pytest.mark.parametrize("threshold", [0.1, 0.26, 0.3])
@pytest.mark.parametrize("steps", [None, 5])
def test_wino_equals_the_plain_loop(length: int, threshold: float, steps: int | None):
    steps = None if steps is None else min(steps, length)
    model = HashModel(vocab_size=12, can_edit=False)
    params = GenerationParams(
        max_tokens=length, policy="wino", threshold=threshold, steps=steps, temperature=0.0
    )
    done = toy_engine(model).generate([[]], params)[0]
    ids, num_remasked, nfe = plain_wino(model, length, threshold, 0.9, steps or length)
    assert list(done.token_ids) == ids
    assert done.usage.nfe == nfe
    assert num_remasked or length < 12 or threshold > 0.26


def test_no_step_commits_more_than_it_may():
    for policy in ("threshold", "wino"):
        params = GenerationParams(
            max_tokens=24, policy=policy, threshold=0.0, max_per_step=5, temperature=1.0, seed=1
        )
        frames = list(toy_engine(HashModel(vocab_size=12)).stream([1], params))
        commits = [len(frame.tokens) for frame in frames]
        assert max(commits) == 5
        assert frames[-1].masked == 0


def test_wino_with_kept_blocks_is_wino_without():
    fields = {"vocab_size": 12, "block_length": 4, "context_length": 64}
    params = GenerationParams(max_tokens=16, policy="wino", threshold=0.1, temperature=1.0, seed=1)
    done = [
        toy_engine(CausalHashModel(**fields), cache_blocks=keep).generate([[1, 2]], params)[0]  # type: ignore[arg-type]
        for keep in (True, False)
    ]
    assert done[0].token_ids == done[1].token_ids
    assert done[0].usage == done[1].usage


def frames_of(policy: str, **fields: object) -> list[Frame]:
    params = GenerationParams(policy=policy, temperature=1.0, **fields)  # type: ignore[arg-type]
    return list(toy_engine(HashModel(vocab_size=12)).stream([1], params))


def test_frames_say_what_is_masked_again_and_it_is_drawn_anew():
    frames = frames_of("remdm", max_tokens=20, steps=60, remask=0.2, seed=5)
    held: dict[int, int] = {}
    redrawn = 0
    for frame in frames:
        for position in frame.remasked:
            held.pop(position)
        redrawn += sum(position in dict(frame.tokens) for position in range(20) if frame.tokens)
        held |= dict(frame.tokens)
        assert len(held) == 20 - frame.masked
    assert redrawn > 20
    assert frames[-1].masked == 0
    assert frames[-1].usage is not None
    assert frames[-1].usage.nfe == 60
    assert all(frame.settled == 0 for frame in frames[:-1])


def test_a_new_visit_draws_a_new_token():
    # One position, the same canvas each time: only the visit tells the draws apart.
    drawn: list[list[int]] = []
    for seed in range(30):
        frames = frames_of("remdm", max_tokens=2, steps=40, remask=0.6, seed=seed)
        drawn.append(
            [token for frame in frames for position, token in frame.tokens if not position]
        )
    revisited = [tokens for tokens in drawn if len(tokens) > 1]
    assert len(revisited) > 10
    assert sum(len(set(tokens)) > 1 for tokens in revisited) > len(revisited) // 2


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"policy": "remdm"}, "steps must be given, because remdm masks again by a schedule"),
        ({"policy": "random", "remask": 0.1}, "remask belongs to the policies remdm, .*=0.1"),
        ({"policy": "remdm", "steps": 4, "remask": 0.0}, r"remask must be in \(0, 1\], got 0.0"),
        ({"policy": "remdm", "steps": 70_000}, "steps must be in 1..65536, got 70000"),
        ({"policy": "p2"}, "toy was not trained to predict filled positions"),
        ({"policy": "verify"}, "toy was not trained to predict filled positions"),
    ],
)
def test_remasking_that_cannot_be_is_refused_in_a_sentence(
    fields: dict[str, object], sentence: str
):
    engine = toy_engine(HashModel(vocab_size=12, can_edit=False))
    with pytest.raises(InvalidRequest, match=sentence):
        engine.prepare([1], GenerationParams(max_tokens=4, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "fields", "sentence"),
    [
        ({"logit_shift": True}, {}, "wino needs a model whose logits are those of their own"),
        ({}, {"cache": "prefix"}, "cache must be off or absent with wino, .* got 'prefix'"),
    ],
)
def test_shadows_that_cannot_be_cast_are_refused_in_a_sentence(
    model: dict[str, object], fields: dict[str, object], sentence: str
):
    engine = toy_engine(HashModel(vocab_size=12, **model))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=sentence):
        engine.prepare([1], GenerationParams(max_tokens=4, policy="wino", **fields))  # type: ignore[arg-type]


def test_doubt_without_rounds_is_refused():
    with pytest.raises(InvalidRequest, match=r"edits\.doubt=0\.1 needs edits\.max_rounds"):
        EditParams(doubt=0.1, max_rounds=0)
