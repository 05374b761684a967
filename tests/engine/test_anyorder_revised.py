"""Policies that revise, within regular languages: against enumeration, and through the engine."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusiongpt.engine import Constraint, Engine, EngineConfig, GenerationParams, Hole, Infill
from diffusiongpt.engine.anyorder import AnyOrderGuide, Stretch
from diffusiongpt.engine.expression import parts_of_regex
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.lifted import LiftedAutomaton
from diffusiongpt.engine.params import EditParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.replay import Replay
from diffusiongpt.engine.tokenizer_files import load_tokenizer
from diffusiongpt.engine.vocabulary import as_set, members

from tiny_models import write_modernbert
from tiny_tokenizer import DELETE, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from toy_languages import LENGTH, canvases, toy_vocabulary
from toy_models import HashModel

DATE = Constraint(kind="regex", source=r"\d{4}-\d{2}-\d{2}")
WORDS = Constraint(kind="regex", source=r"[a-z]{1,4}( [a-z]{1,4}){0,3}\.")
NAMES = Constraint(kind="choice", source=json.dumps(["cat", "dog", "the sun", "a"]))
PERSON = Constraint(
    kind="json_schema",
    source=json.dumps(
        {
            "type": "object",
            "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"enum": ["cat", 3]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        }
    ),
)
REVISING = [name for name, preset in PRESETS.items() if preset.revises]
SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [MASK, DELETE],
    "can_edit": True,
}


def is_word(text: str, constraint: Constraint) -> bool:
    if constraint.kind == "choice":
        return text in constraint.choices
    if constraint.kind == "json_schema":
        jsonschema.validate(json.loads(text), json.loads(constraint.source))
        return True
    return re.fullmatch(constraint.source, text) is not None


def others_of(words: Sequence[tuple[int, ...]], held: dict[int, int], position: int) -> int:
    """What some word has at a position beside all else that is held, a set."""
    rest = {each: token for each, token in held.items() if each != position}
    return as_set({word[position] for word in words if all(word[p] == t for p, t in rest.items())})


@pytest.mark.parametrize("regex", ["(ab)*c?", "a{1,3}b|é+", "[^c]*", "(a|ba)+", "aé(b|c)*"])
def test_after_every_commit_edit_and_release_is_allowed_what_some_word_has(regex: str):
    automaton = LiftedAutomaton(parts_of_regex(regex).determine(), toy_vocabulary())
    words, chance = canvases(regex), random.Random(regex)
    guide, held = AnyOrderGuide([Stretch(automaton, 0, LENGTH)]), dict[int, int]()
    num_edits = num_full = 0
    for _ in range(250):
        released = chance.sample(sorted(held), chance.randint(0, len(held)) // 2)
        guide.release(released)
        for position in released:
            del held[position]
        masked = [each for each in range(LENGTH) if each not in held]
        open_sets, held_sets = guide.open_sets(0, LENGTH), guide.held_sets(0, LENGTH)
        assert open_sets == {each: others_of(words, held, each) for each in masked}
        assert held_sets == {each: others_of(words, held, each) for each in held}
        allowed = open_sets | held_sets
        some = chance.sample(range(LENGTH), chance.randint(1, LENGTH))
        drawn = [chance.choice(list(members(allowed[each]))) for each in some]
        sureness = [chance.random() for _ in some]
        taken = guide.accept_at(some, drawn, sureness)
        order = sorted(range(len(some)), key=lambda i: (some[i] in open_sets and -1, -sureness[i]))
        for index in order:
            may_be = bool(others_of(words, held, some[index]) >> drawn[index] & 1)
            assert taken[index] == may_be
            if may_be:
                num_edits += some[index] in held_sets and held[some[index]] != drawn[index]
                held[some[index]] = drawn[index]
        assert taken[order[0]]
        assert guide.is_complete == (len(held) == LENGTH)
        num_full += len(held) == LENGTH
    assert num_full > 20
    assert num_edits > 20 or regex == "(ab)*c?"


def test_free_positions_beside_a_stretch_are_counted_as_they_are_revised():
    automaton = LiftedAutomaton(parts_of_regex("a(b|c)").determine(), toy_vocabulary())
    guide = AnyOrderGuide([Stretch(automaton, 0, 2)], num_free=2)
    assert guide.accept_at([5, 6], [3, 3], [0.0, 0.0]) == [True, True]
    assert guide.accept_at([0, 1, 5], [0, 1, 4], [0.0, 0.0, 0.0]) == [True, True, True]
    assert guide.is_complete
    guide.release([6, 1])
    assert not guide.is_complete
    assert guide.held_sets(0, 9) == {0: as_set([0, 2])}
    assert guide.accept_at([6, 1], [0, 4], [0.0, 0.0]) == [True, True]
    assert guide.is_complete


def test_edits_never_keep_a_mask_from_being_filled():
    # The edit is surer, and would leave the mask's draw without a word.
    automaton = LiftedAutomaton(parts_of_regex("ab|ba|bb").determine(), toy_vocabulary())
    guide = AnyOrderGuide([Stretch(automaton, 0, 2)])
    assert guide.accept_at([0], [1], [0.0]) == [True]
    assert guide.held_sets(0, 2)[0] & 1
    assert guide.accept_at([0, 1], [0, 0], [9.0, 0.0]) == [False, True]


def load(folder: Path, block_length: int | None, **section: Any) -> Engine:
    section = {**SECTION, **section}
    write_modernbert(
        folder, block_length=block_length, vocab_size=VOCAB_SIZE, seed=3, section=section
    )
    write_tiny_tokenizer(folder)
    return Engine.from_pretrained(folder, dtype="float32", max_tokens=128)


@pytest.fixture(scope="module", params=[None, 8], ids=["bidirectional", "block_causal"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(tmp_path_factory.mktemp("model"), request.param)


@cache
def bidirectional() -> Engine:
    with tempfile.TemporaryDirectory() as folder:
        return load(Path(folder), None)


def revising(policy: str, **fields: Any) -> GenerationParams:
    """A policy's request such that it does revise at temperature 1."""
    preset = PRESETS[policy]
    if preset.tosses:
        fields |= {"steps": 24, "remask": 0.3}
    if preset.adaptive:
        fields |= {"threshold": 0.02}
    if policy in ("joint", "verify"):
        fields |= {"edits": EditParams(threshold=0.02, doubt=0.1, max_rounds=3)}
    return GenerationParams(policy=policy, **{"temperature": 1.0, **fields})


def revisions(frames: Sequence[Frame]) -> int:
    """How often a filled position was masked again or got another token."""
    held: dict[int, int] = {}
    count = 0
    for frame in frames:
        for position in frame.remasked:
            count += held.pop(position, None) is not None
        for position, token in frame.tokens:
            count += held.get(position, token) != token
            held[position] = token
    return count


@pytest.mark.parametrize("policy", REVISING)
def test_every_policy_that_revises_writes_words(engine: Engine, policy: str):
    if engine.info.attention == "block_causal" and policy not in ("joint", "wino", "remdm"):
        return
    revised = 0
    for seed, (constraint, length) in enumerate([(DATE, 14), (PERSON, 24), (NAMES, 7)]):
        params = revising(policy, constraint=constraint, max_tokens=length, seed=seed, watch=True)
        frames, replay, content = list(engine.stream("the cat", params)), Replay(), ""
        for frame in frames:
            replay.apply(frame.set, frame.unset)
            content += frame.content
            # What was sent stays.
            if frame.finish_reason is None:
                assert replay.text.startswith(content)
        assert is_word(content, constraint)
        assert replay.text == content
        assert frames[-1].finish_reason is FinishReason.STOP
        revised += revisions(frames)
    assert revised > 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(sorted(PRESETS)),
    edits=st.sampled_from([None, None, EditParams(threshold=0.05, doubt=0.05, max_rounds=2)]),
    constraint=st.sampled_from([DATE, WORDS, NAMES, PERSON]),
    spare=st.integers(0, 6),
    block_length=st.sampled_from([0, 4]),
    seed=st.integers(0, 2**32),
)
def test_every_policy_writes_words_however_it_edits(
    policy: str,
    edits: EditParams | None,
    constraint: Constraint,
    spare: int,
    block_length: int,
    seed: int,
):
    engine = bidirectional()
    params = revising(policy, constraint=constraint, seed=seed, block_length=block_length)
    params = params.replace(max_tokens=len(engine.compile(constraint).shortest) + spare)
    done = engine.generate(["the"], params if edits is None else params.replace(edits=edits))[0]
    assert is_word(done.text, constraint)


@pytest.mark.parametrize("policy", ["joint", "verify", "wino", "p2", "remdm"])
def test_every_policy_that_revises_fills_holes_with_words(engine: Engine, policy: str):
    if engine.info.attention == "block_causal":
        return
    holes = Infill("on ", Hole(12), " the ", Hole(6, constraint=NAMES), " sat", Hole(3), ".")
    for temperature in (0.0, 1.0):
        params = revising(policy, temperature=temperature, seed=7)
        date = Infill(*(holes.parts[0], Hole(12, constraint=DATE), *holes.parts[2:]))
        for done in engine.generate([date] * 2, params):
            assert is_word(done.fills[0], DATE)
            assert is_word(done.fills[1], NAMES)
            assert done.finish_reason is FinishReason.STOP
            assert all(each.token_id == done.token_ids[each.position] for each in done.tokens)


def test_what_was_taken_back_is_told_no_more():
    engine = bidirectional()
    for seed in range(4):
        params = revising("remdm", constraint=NAMES, seed=seed, logprobs=1)
        frames = engine._run([engine.prepare(Infill("the ", Hole(7), " sat"), params)])
        (sent,) = frames.values()
        held: dict[int, int] = {}
        told: dict[int, int] = {}
        for frame in sent:
            changed = {position for position, _ in frame.tokens} | set(frame.remasked)
            held = {p: t for p, t in held.items() if p not in changed} | dict(frame.tokens)
            told = {p: t for p, t in told.items() if p not in changed}
            told |= {each.position: each.token.token_id for each in frame.logprobs}
            assert {each.position for each in frame.committed} <= changed
        text = sent[-1].fills[0]
        end = min((p for p, t in held.items() if t == IM_END), default=7)
        # The token that ends the text may be told of as well; nothing behind it is.
        assert {p: t for p, t in told.items() if p < end} == {p: held[p] for p in range(end)}
        assert set(told) <= set(range(end + 1))
        assert text in NAMES.choices


def test_the_same_alone_and_in_company(engine: Engine):
    if engine.info.attention == "block_causal":
        return
    asked = [
        revising(policy, constraint=constraint, max_tokens=14, seed=seed)
        for seed, (policy, constraint) in enumerate(
            zip([*REVISING, "random", "threshold"], [DATE, WORDS, NAMES] * 4, strict=False)
        )
    ]
    asked.append(GenerationParams(max_tokens=20, seed=3, temperature=1.0))
    alone = [engine.generate(["the cat"], each)[0] for each in asked]
    frames = engine._run([engine.prepare("the cat", each) for each in asked])
    for one, sent in zip(alone, frames.values(), strict=True):
        assert "".join(frame.content for frame in sent) == one.text
        assert sent[-1].usage == one.usage


def test_what_a_model_edits_by_default_it_edits_in_any_order(tmp_path: Path):
    engine = load(tmp_path, None, sampler={"policy": "threshold", "edits": True})
    params = GenerationParams(max_tokens=40, constraint=DATE)
    assert engine.prepare("the", params).policy.revises
    schema = Constraint(kind="json_object", source="")
    assert not engine.prepare("the", params.replace(constraint=schema)).policy.revises


class Deleter(HashModel):
    """Wants to delete every filled position."""

    def denoise(self, ids: Tensor) -> Tensor:
        logits = super().denoise(ids)
        logits[ids != MASK, DELETE] = 30.0
        return logits

    @property
    def mask_token_id(self) -> int:
        return MASK


def test_nothing_is_deleted_within_a_language_and_anything_beside_it(tmp_path: Path):
    write_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(
        tmp_path, vocab_size=VOCAB_SIZE, mask_token_id=MASK, stop_token_ids=[IM_END]
    )
    model = Deleter(vocab_size=VOCAB_SIZE, stop_token_ids=(IM_END,), delete_token_id=DELETE)
    engine = Engine(model, tokenizer, EngineConfig(max_tokens=64))  # type: ignore[arg-type]
    for seed in range(3):
        params = GenerationParams(policy="joint", threshold=0.02, temperature=1.0, seed=seed)
        holes = Infill("the ", Hole(12, constraint=DATE), " and ", Hole(3), ".")
        done = engine.generate([holes], params)[0]
        assert is_word(done.fills[0], DATE)
        assert done.fills[1] == ""
        assert done.token_ids.count(DELETE) == 3
