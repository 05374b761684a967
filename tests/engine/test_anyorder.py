"""Regular languages filled in any order: against enumeration, and through the engine."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusiongpt.engine import Constraint, Engine, EngineConfig, GenerationParams, Hole, Infill
from diffusiongpt.engine.anyorder import AnyOrderGuide, Stretch
from diffusiongpt.engine.automaton import TooLarge
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.expression import parts_of_regex
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.lifted import LiftedAutomaton
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.tokenizer_files import load_tokenizer
from diffusiongpt.engine.vocabulary import Vocabulary, as_set, members

from tiny_models import write_modernbert
from tiny_tokenizer import DELETE, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from toy_languages import LENGTH, PAD, STOP, canvases, toy_vocabulary
from toy_models import ToyModel

DATE = Constraint(kind="regex", source=r"\d{4}-\d{2}-\d{2}")
NAMES = Constraint(kind="choice", source=json.dumps(["cat", "dog", "the sun", "a"]))
SECTION = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}


@pytest.mark.parametrize("regex", ["(ab)*c?", "a{1,3}b|é+", "[^c]*", "(a|ba)+", "b{6}", "aé(b|c)*"])
def test_what_is_allowed_is_what_some_word_has(regex: str):
    automaton = LiftedAutomaton(parts_of_regex(regex).determine(), toy_vocabulary())
    words = canvases(regex)
    chance = random.Random(regex)
    shortest = automaton.shortest(LENGTH)
    least = min((sum(each not in (PAD, STOP) for each in word) for word in words), default=None)
    assert (None if shortest is None else len(shortest)) == least
    for _ in range(30 if words else 0):
        guide = AnyOrderGuide([Stretch(automaton, 0, LENGTH)])
        left, filled = words, dict[int, int]()
        while not guide.is_complete:
            masked = [each for each in range(LENGTH) if each not in filled]
            expected = {each: as_set({word[each] for word in left}) for each in masked}
            assert guide.open_sets(0, LENGTH) == expected
            some = chance.sample(masked, chance.randint(1, len(masked)))
            drawn = [chance.choice(list(members(expected[each]))) for each in some]
            sureness = [chance.random() for _ in some]
            taken = guide.accept_at(some, drawn, sureness)
            order = sorted(range(len(some)), key=lambda each: -sureness[each])
            for each in order:
                keep = [word for word in left if word[some[each]] == drawn[each]]
                assert taken[each] == bool(keep)
                left = keep or left
            assert taken[order[0]]
            filled |= {
                each: token for each, token, kept in zip(some, drawn, taken, strict=True) if kept
            }
        assert tuple(filled[each] for each in range(LENGTH)) in words


def test_what_is_forced_is_taken_anywhere_and_ends_are_known():
    automaton = LiftedAutomaton(parts_of_regex("a(b|c)").determine(), toy_vocabulary())
    guide = AnyOrderGuide([Stretch(automaton, 2, 6), Stretch(automaton, 9, 12)])
    assert guide.take_forced_in(0, 12, 9) == [(5, PAD)]
    assert [guide.is_past_end(each) for each in (2, 3, 4, 5, 9, 11)] == [False] * 3 + [True] + [
        False
    ] * 2
    assert guide.accept_at([2, 10], [0, 1], [0.0, 0.0]) == [True, True]
    forced = guide.take_forced_in(0, 12, 2)
    assert forced == [(9, 0)]
    assert not guide.is_complete


@pytest.mark.parametrize(
    "regex", [DATE.source, r"[A-Z]\w{0,3}( \S{1,4})*[.!?]", r"(red|green)(, (blue|red)){0,2}"]
)
def test_a_real_vocabulary_gives_words_in_any_order(bundled_vocabulary: Vocabulary, regex: str):
    automaton = LiftedAutomaton(parts_of_regex(regex).determine(), bundled_vocabulary)
    for seed in range(25):
        chance = random.Random(seed)
        shortest = automaton.shortest(40)
        assert shortest is not None
        length = len(shortest) + seed % 7
        stretch = Stretch(automaton, 0, length)
        tokens = [0] * length
        for position in chance.sample(range(length), length):
            tokens[position] = chance.choice(list(members(stretch.allowed(position))))
            assert stretch.accept(position, tokens[position])
        assert re.fullmatch(regex, bundled_vocabulary.spell(tokens).decode())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=3, section=SECTION)
    write_tiny_tokenizer(folder)
    return Engine.from_pretrained(folder, dtype="float32", max_tokens=128)


@pytest.mark.parametrize("policy", [name for name in PRESETS if not PRESETS[name].revises])
def test_every_policy_fills_several_holes_with_words(engine: Engine, policy: str):
    holes = Infill("on ", Hole(12), " the ", Hole(10), " sat", Hole(14))
    for temperature in (0.0, 1.5):
        params = GenerationParams(policy=policy, constraint=DATE, temperature=temperature, seed=4)
        for done in engine.generate([holes] * 2, params):
            assert len(done.fills) == 3
            assert all(re.fullmatch(DATE.source, each) for each in done.fills)
            assert done.finish_reason is FinishReason.STOP


def test_every_hole_may_have_a_language_of_its_own(engine: Engine):
    number = Constraint(kind="regex", source="[1-9][0-9]{0,2}")
    holes = Infill(
        "the ",
        Hole(4, constraint=NAMES),
        " had ",
        Hole(6),
        " and ",
        Hole("auto", (2, 5), number),
        " suns",
    )
    for policy in ("random", "confidence", "threshold"):
        params = GenerationParams(policy=policy, temperature=1.5, seed=2)
        done = engine.generate([holes], params)[0]
        assert done.fills[0] in json.loads(NAMES.source)
        assert re.fullmatch(number.source, done.fills[2])
        assert all(score < 0 for _, score in done.lengths)
        with pytest.raises(InvalidRequest, match=r"a hole's length must be at least 10.* got 6"):
            engine.generate([holes], params.replace(constraint=DATE))


def test_holes_side_by_side_of_one_language_are_one(engine: Engine):
    touching = Infill("the ", Hole(4), Hole(6), ".")
    assert re.fullmatch(
        DATE.source,
        engine.generate([touching], GenerationParams(constraint=DATE, seed=1))[0].fills[0],
    )
    own = Infill("the ", Hole(6, constraint=DATE), "", Hole(6), ".")
    assert len(engine.generate([own], GenerationParams(constraint=DATE, seed=1))[0].fills) == 1


@pytest.mark.parametrize("policy", ["random", "threshold", "confidence", "remdm", "wino"])
def test_holes_side_by_side_may_have_languages_of_their_own(engine: Engine, policy: str):
    number = Constraint(kind="regex", source="[1-9][0-9]{0,2}")
    touching = Infill(
        "the ", Hole(4, constraint=NAMES), Hole(3, constraint=number), "", Hole(2), Hole(11), "."
    )
    steps = 12 if policy == "remdm" else None
    for seed in range(2):
        params = GenerationParams(policy=policy, steps=steps, temperature=1.5, seed=seed)
        dated = Infill(*touching.parts[:-2], Hole(11, constraint=DATE), touching.parts[-1])
        done = engine.generate([dated], params)[0]
        name, count, _, date = done.fills
        assert name in json.loads(NAMES.source)
        assert re.fullmatch(number.source, count)
        assert re.fullmatch(DATE.source, date)
        assert done.text == "".join(done.fills)
        one = engine.generate([touching], params.replace(constraint=DATE))[0]
        assert len(one.fills) == 3
        assert re.fullmatch(DATE.source, one.fills[2])


def test_a_hole_from_left_to_right_has_no_neighbour(engine: Engine):
    anything = Constraint(kind="json_object", source="")
    touching = Infill("the ", Hole(6, constraint=anything), Hole(4), ".")
    with pytest.raises(InvalidRequest, match="from left to right and takes one hole, got 2 of"):
        engine.prepare(touching)


def test_positions_are_chosen_freely(engine: Engine):
    params = GenerationParams(max_tokens=14, policy="random", constraint=DATE, temperature=1.0)
    for seed in range(4):
        done = engine.generate(["the cat"], params.replace(seed=seed, steps=14))[0]
        assert re.fullmatch(DATE.source, done.text)
        order = [each.position for each in sorted(done.tokens, key=lambda each: each.order)]
        assert order != sorted(order)


def test_the_same_alone_and_in_company(engine: Engine):
    def params(seed: int, **fields: Any) -> GenerationParams:
        return GenerationParams(seed=seed, temperature=1.0, **fields)

    holes = Infill("the ", Hole(4), " sat on ", Hole(11), ".")
    asked: list[tuple[Any, GenerationParams]] = [
        (holes, params(1, constraint=NAMES)),
        ("the", params(2, max_tokens=20)),
        ("the", params(3, max_tokens=20, constraint=DATE)),
        (Infill("the ", Hole(12), "."), params(4, constraint=DATE, policy="random")),
        (
            "a",
            params(
                5,
                max_tokens=9,
                constraint=Constraint(kind="json_schema", source='{"type":"integer"}'),
            ),
        ),
    ]
    alone = [engine.generate([prompt], each)[0].tokens for prompt, each in asked]
    frames = engine._run([engine.prepare(*each) for each in asked])
    for one, sent in zip(alone, frames.values(), strict=True):
        committed = {each.position: each.token_id for frame in sent for each in frame.committed}
        assert committed == {each.position: each.token_id for each in one}


def test_a_hole_too_short_for_any_word_is_refused(engine: Engine):
    holes = Infill("on ", Hole(12), " the ", Hole(9), ".")
    with pytest.raises(InvalidRequest, match=r"a hole's length must be at least 10, .* got 9"):
        engine.prepare(holes, GenerationParams(constraint=DATE))
    with pytest.raises(InvalidRequest, match=r"max_tokens must be at least 10, .* got 9"):
        engine.prepare("on ", GenerationParams(constraint=DATE, max_tokens=9))


def test_a_language_with_too_many_states_is_written_from_left_to_right(engine: Engine):
    large = Constraint(kind="regex", source=r"\w{1,40}!")
    with pytest.raises(TooLarge):
        parts_of_regex(large.source).determine()
    params = GenerationParams(constraint=large, seed=1, temperature=1.0)
    done = engine.generate([Infill("the ", Hole(12), " sat")], params)[0]
    assert re.fullmatch(large.source, done.fills[0])
    two = Infill("the ", Hole(12), " and ", Hole(12))
    with pytest.raises(
        InvalidRequest, match="this regex is written from left to right and takes one"
    ):
        engine.prepare(two, params)


class FixedModel(ToyModel):
    """The same logits whatever the canvas holds."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__(vocab_size=logits.shape[1], stop_token_ids=(IM_END,))
        self._logits = logits

    @property
    def mask_token_id(self) -> int:
        return MASK

    def denoise(self, ids: torch.Tensor) -> torch.Tensor:
        return self._logits[: len(ids)]


def law_of(words: Sequence[tuple[int, ...]], logits: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The chance of each full canvas where every step draws every mask at once and keeps, from
    left to right, what some word still has."""
    chances = logits.double().exp()

    def share(position: int, left: Sequence[tuple[int, ...]]) -> dict[int, float]:
        tokens = {word[position] for word in left}
        total = sum(float(chances[position + 1, each]) for each in tokens)
        return {each: float(chances[position + 1, each]) / total for each in tokens}

    @cache
    def step(canvas: tuple[int | None, ...]) -> dict[tuple[int, ...], float]:
        left = [w for w in words if all(c in (None, t) for c, t in zip(canvas, w, strict=True))]
        if len(left) == 1:
            return {left[0]: 1.0}
        law: Counter[tuple[int, ...]] = Counter()
        masked = [each for each, token in enumerate(canvas) if token is None]
        shares = {each: share(each, left) for each in masked}

        def draw(
            index: int, now: tuple[int | None, ...], left: list[tuple[int, ...]], p: float
        ) -> None:
            if index == len(masked):
                for word, chance in step(now).items():
                    law[word] += p * chance
                return
            at = masked[index]
            refused = 0.0
            for token, chance in shares[at].items():
                if keep := [word for word in left if word[at] == token]:
                    draw(index + 1, (*now[:at], token, *now[at + 1 :]), keep, p * chance)
                else:
                    refused += chance
            if refused:
                draw(index + 1, now, left, p * refused)

        draw(0, canvas, left, 1.0)
        return dict(law)

    return step((None,) * len(words[0]))


def test_draws_of_one_step_have_the_law_of_the_enumeration(tmp_path: Path):
    write_tiny_tokenizer(tmp_path)
    tokenizer = load_tokenizer(
        tmp_path, vocab_size=VOCAB_SIZE, mask_token_id=MASK, stop_token_ids=[IM_END]
    )
    assert tokenizer is not None
    texts = ["ABC", "BAC", "AB", "CCC", "B"]
    logits = torch.randn(4, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    spelled = [tokenizer.token_bytes(each) for each in range(VOCAB_SIZE)]
    letters = [
        each for each in range(VOCAB_SIZE) if spelled[each] and set(spelled[each]) <= set(b"ABC")
    ]
    words = [
        tokens
        for tokens in itertools.product([*letters, IM_END], repeat=3)
        if all(b == IM_END for a, b in itertools.pairwise(tokens) if a == IM_END)
        and tokenizer.decode(tokens) in texts
    ]
    law = law_of(words, logits)
    assert math.isclose(sum(law.values()), 1.0, abs_tol=1e-9)
    engine = Engine(
        FixedModel(logits),  # type: ignore[arg-type]
        tokenizer,
        EngineConfig(max_tokens=8, num_slots=64, max_waiting=4096),
    )
    params = GenerationParams(
        max_tokens=3,
        policy="ancestral",
        steps=1,
        constraint=Constraint(kind="choice", source=json.dumps(texts)),
        temperature=1.0,
        seed=0,
    )
    count = 1200
    done = engine.generate([[DELETE]] * count, params)
    seen = Counter(each.text for each in done)
    expected: Counter[str] = Counter()
    for word, chance in law.items():
        expected[tokenizer.decode(word)] += chance
    distance = sum(abs(seen[text] / count - expected[text]) for text in texts) / 2
    noise = sum(math.sqrt(p * (1 - p) / count) for p in expected.values()) / 2
    assert distance < 2.5 * noise
