"""Revising what is filled, against plain loops that read like the definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.params import EditParams, GenerationParams
from diffusiongpt.engine.revise import state_keys, was_seen

from toy_models import HashModel, ToyModel, probabilities, toy_engine


def plain_joint(
    model: ToyModel,
    prompt: list[int],
    length: int,
    block_length: int,
    threshold: float,
    edits: EditParams,
) -> list[int]:
    """LLaDA2.1's joint decoding, greedily: commit and edit from the same forward, then look at
    the full block until nothing changes, a state comes back, or the rounds are used."""
    mask = model.mask_token_id
    ids = prompt + [mask] * length
    for start in range(len(prompt), len(ids), block_length):
        block = range(start, min(start + block_length, len(ids)))
        seen: list[list[int]] = []
        rounds = 0
        while True:
            masked = [i for i in block if ids[i] == mask]
            rounds += not masked
            top, best = probabilities(model, ids).max(dim=-1)
            held = [probabilities(model, ids)[i, ids[i]].item() for i in range(len(ids))]
            commits = {i for i in masked if top[i] > threshold}
            commits |= set(sorted(masked, key=lambda i: (-top[i].item(), i))[:1])
            changed = {
                i
                for i in block
                if i not in masked
                and best[i] != ids[i]
                and top[i] > edits.threshold
                and top[i].item() >= edits.margin * held[i]
            }
            for i in commits | changed:
                ids[i] = int(best[i])
            if mask in ids[block.start : block.stop]:
                continue
            state = ids[block.start : block.stop]
            if state in seen or rounds >= edits.max_rounds:
                break
            seen.append(state)
    return ids[len(prompt) :]


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 10), max_size=4),
    length=st.integers(1, 14),
    block_length=st.sampled_from([4, 20]),
    threshold=st.sampled_from([0.2, 0.3, 0.9]),
    edit_threshold=st.sampled_from([0.0, 0.2, 0.35]),
    margin=st.sampled_from([1.0, 3.0]),
    max_rounds=st.sampled_from([0, 1, 3, 16]),
)
def test_commits_and_edits_are_those_of_the_plain_loop(
    prompt: list[int],
    length: int,
    block_length: int,
    threshold: float,
    edit_threshold: float,
    margin: float,
    max_rounds: int,
):
    edits = EditParams(threshold=edit_threshold, margin=margin, max_rounds=max_rounds)
    params = GenerationParams(
        max_tokens=length,
        policy="joint",
        threshold=threshold,
        edits=edits,
        block_length=block_length,
        temperature=0.0,
        ignore_eos=True,
    )
    model = HashModel(vocab_size=12)
    ours = toy_engine(model).generate([prompt], params)[0]
    assert list(ours.token_ids) == plain_joint(
        model, prompt, length, block_length, threshold, edits
    )


class SecondThoughts(ToyModel):
    """Says 1 at a mask, and of a filled position that its token should be the next one in
    `after`: 1 becomes after[1], and so on; what is not in it stays."""

    def __init__(self, after: dict[int, int], **fields: object) -> None:
        super().__init__(vocab_size=8, **fields)  # type: ignore[arg-type]
        self.after = after

    def denoise(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(len(ids), self.vocab_size)
        for position, token in enumerate(ids.tolist()):
            said = 1 if token == self.mask_token_id else self.after.get(token, token)
            logits[position, said] = 9.0
        return logits


def frames_of(model: ToyModel, **fields: object) -> list[Frame]:
    params = GenerationParams(policy="joint", temperature=0.0, **fields)  # type: ignore[arg-type]
    return list(toy_engine(model).stream([3], params))


def tokens_of(frames: list[Frame]) -> list[int]:
    tokens = {position: token for frame in frames for position, token in frame.tokens}
    return [tokens[position] for position in sorted(tokens)]


def test_editing_ends_when_nothing_changes():
    frames = frames_of(SecondThoughts({1: 2, 2: 4}), max_tokens=2)
    # Commit, two rounds with a change, and one that finds nothing to do.
    assert [frame.tokens for frame in frames[1:]] == [
        ((0, 1), (1, 1)),
        ((0, 2), (1, 2)),
        ((0, 4), (1, 4)),
        (),
    ]
    assert frames[-1].usage is not None
    assert (frames[-1].usage.nfe, frames[-1].step) == (4, 1)


def test_editing_ends_when_a_state_comes_back():
    frames = frames_of(SecondThoughts({1: 2, 2: 4, 4: 1}), max_tokens=2)
    assert frames[-1].usage is not None
    assert frames[-1].usage.nfe == 4
    assert tokens_of(frames) == [1, 1]


def test_editing_ends_when_the_rounds_are_used():
    model = SecondThoughts({1: 2, 2: 3, 3: 4, 4: 5})
    frames = frames_of(model, max_tokens=2, edits=EditParams(max_rounds=2))
    assert tokens_of(frames) == [3, 3]
    assert tokens_of(frames_of(model, max_tokens=2, edits=False)) == [1, 1]


def test_nothing_settles_in_a_block_that_may_still_be_edited():
    frames = frames_of(SecondThoughts({1: 2}), max_tokens=4, block_length=2)
    assert [(frame.settled, frame.masked) for frame in frames] == [
        (0, 4),
        (0, 2),
        (0, 2),
        (2, 2),
        (2, 0),
        (2, 0),
        (4, 0),
    ]


def test_an_end_of_text_that_is_edited_away_ends_nothing():
    kept = frames_of(SecondThoughts({}, stop_token_ids=(1,)), max_tokens=4)
    assert kept[-1].finish_reason is FinishReason.STOP
    assert kept[-1].usage is not None
    assert kept[-1].usage.completion_tokens == 1
    edited = frames_of(SecondThoughts({1: 2}, stop_token_ids=(1,)), max_tokens=4)
    assert edited[-1].finish_reason is FinishReason.LENGTH
    assert tokens_of(edited) == [2, 2, 2, 2]


def test_the_log_probabilities_are_those_of_the_last_token():
    frames = frames_of(SecondThoughts({1: 2}), max_tokens=3, logprobs=1)
    told = {each.position: each for frame in frames for each in frame.logprobs}
    assert [told[position].token.token_id for position in range(3)] == [2, 2, 2]
    assert all(each.top[0].token_id == 2 for each in told.values())
    last = {each.position: each for frame in frames for each in frame.committed}
    assert [last[position].token_id for position in range(3)] == [2, 2, 2]


def test_only_an_edit_deletes():
    # Deletion is what the model wants everywhere; at a mask it may not.
    class Deleter(SecondThoughts):
        def denoise(self, ids: Tensor) -> Tensor:
            logits = super().denoise(ids)
            logits[:, 6] = 20.0
            return logits

    fields = {"max_tokens": 3, "temperature": 0.0}
    edited = toy_engine(Deleter({}, delete_token_id=6)).generate(
        [[3]],
        GenerationParams(policy="joint", **fields),  # type: ignore[arg-type]
    )
    assert edited[0].token_ids == (6, 6, 6)
    for policy in ("threshold", "verify", "p2"):
        kept = toy_engine(Deleter({}, delete_token_id=6)).generate(
            [[3]],
            GenerationParams(policy=policy, **fields),  # type: ignore[arg-type]
        )
        assert kept[0].token_ids == (1, 1, 1)


def test_the_prompt_and_what_is_given_are_never_edited():
    seen: list[list[int]] = []

    class Recorder(SecondThoughts):
        def denoise(self, ids: Tensor) -> Tensor:
            seen.append(ids.tolist())
            return super().denoise(ids)

    frames = frames_of(Recorder({1: 2, 3: 5}), max_tokens=3)
    assert {ids[0] for ids in seen} == {3}
    assert {position for frame in frames for position, _ in frame.tokens} == {0, 1, 2}


def test_states_are_known_again_by_their_inside_alone():
    ids = torch.tensor([[1, 2, 9], [1, 2, 7], [2, 1, 9]])
    inside = torch.tensor([[True, True, False]]).expand(3, 3)
    first, same, swapped = state_keys(ids, inside).tolist()
    assert first == same
    assert first != swapped
    recorded = torch.tensor([[first, 0], [0, first]])
    key = torch.tensor([first, first])
    assert was_seen(key, recorded, torch.tensor([1, 1])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"policy": "joint"}, "toy was not trained to predict filled positions"),
        ({"policy": "confidence", "edits": True}, "so they cannot be edited, got .*edits=True"),
        ({"edits": 3}, "edits must be true, false or EditParams, got 3"),
    ],
)
def test_edits_that_cannot_be_are_refused_in_a_sentence(fields: dict[str, object], sentence: str):
    engine = toy_engine(HashModel(vocab_size=12, can_edit=False))
    with pytest.raises(InvalidRequest, match=sentence):
        engine.prepare([1], GenerationParams(max_tokens=4, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"threshold": 1.5}, r"edits.threshold must be in \[0, 1\], got 1.5"),
        ({"margin": 0.5}, r"edits.margin must be in \[1, inf\), got 0.5"),
        ({"max_rounds": 65}, "edits.max_rounds must be in 0..64, got 65"),
    ],
)
def test_bad_edit_parameters_are_refused_in_a_sentence(fields: dict[str, float], sentence: str):
    with pytest.raises(InvalidRequest, match=sentence):
        EditParams(**fields)  # type: ignore[arg-type]


def test_a_default_policy_that_the_model_cannot_follow_is_refused_at_load():
    with pytest.raises(LoadError, match="default policy joint revises filled positions"):
        toy_engine(HashModel(vocab_size=12, can_edit=False, sampler={"policy": "joint"}))
