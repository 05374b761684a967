"""Drafts whose refined text must be of a language: what is kept, against every canvas; that the
text is a word, by every policy; what is refused."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from diffusiongpt.engine import Constraint, Draft, Engine, GenerationParams
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.expression import parts_of_regex
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.lifted import LiftedAutomaton
from diffusiongpt.engine.params import EditParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.replay import Replay

from tiny_models import write_modernbert
from tiny_tokenizer import DELETE, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from toy_languages import BANNED, LENGTH, canvases, toy_vocabulary

DATE = Constraint(kind="regex", source=r"\d{4}-\d{2}-\d{2}")
PERSON = Constraint(
    kind="json_schema",
    source=json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    ),
)
SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [MASK, DELETE],
    "can_edit": True,
}


@pytest.mark.parametrize("regex", ["(ab)*c?", "a{1,3}b|é+", "[^c]*", "(a|ba)+", "aé(b|c)*"])
def test_the_heaviest_tokens_that_stand_together_are_kept(regex: str):
    automaton = LiftedAutomaton(parts_of_regex(regex).determine(), toy_vocabulary())
    words, draw = canvases(regex), random.Random(regex)
    num_less = 0
    for _ in range(120):
        positions = draw.sample(range(LENGTH), draw.randint(0, LENGTH))
        tokens = {p: (draw.randint(0, BANNED), draw.choice([0.1, 0.5, 1.0])) for p in positions}

        def weigh(word: Sequence[int], tokens: Any = tokens) -> float:
            return sum(weight for p, (token, weight) in tokens.items() if word[p] == token)

        kept = automaton.keep_most(tokens, LENGTH)
        assert any(all(word[p] == tokens[p][0] for p in kept) for word in words)
        assert sum(tokens[p][1] for p in kept) == pytest.approx(max(map(weigh, words)))
        num_less += len(kept) < len(tokens)
    assert num_less > 20


def test_without_a_text_of_so_many_positions_nothing_is_kept():
    automaton = LiftedAutomaton(parts_of_regex("abcabcabc").determine(), toy_vocabulary())
    assert automaton.keep_most({0: (2, 1.0), 1: (4, 1.0)}, 2) == []


@pytest.fixture(scope="module", params=[None, 8], ids=["bidirectional", "block_causal"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    write_modernbert(
        folder, block_length=request.param, vocab_size=VOCAB_SIZE, seed=3, section=SECTION
    )
    write_tiny_tokenizer(folder)
    return Engine.from_pretrained(folder, dtype="float32", max_tokens=128)


def refine(engine: Engine, text: str, strength: float, **fields: Any) -> str:
    """The refined text, read as a client reads it."""
    params = GenerationParams(
        draft=Draft(text, strength), temperature=1.0, watch=True, **{"seed": 1, **fields}
    )
    replay, content = Replay(), ""
    frames = list(engine.stream("the cat", params))
    for frame in frames:
        replay.apply(frame.set, frame.unset)
        content += frame.content
        if frame.finish_reason is None:
            assert replay.text.startswith(content)
    assert frames[-1].finish_reason is FinishReason.STOP
    assert replay.text == content
    return content


def test_a_draft_that_is_a_word_stays_as_it_is_where_nothing_is_redone(engine: Engine):
    for text, constraint in (("2024-05-17", DATE), ('{"name": "cat", "age": 12}', PERSON)):
        length = len(engine.encode(text))
        for spare in (0, 5):
            fields: dict[str, Any] = {"max_tokens": length + spare, "edits": False}
            assert refine(engine, text, 0.0, constraint=constraint, **fields) == text


def test_what_cannot_stand_is_mended_and_the_rest_stays(engine: Engine):
    mended = refine(engine, "2024x05-1?", 0.0, constraint=DATE, max_tokens=10, edits=False)
    assert re.fullmatch(r"2024-05-1\d", mended)
    # Tokens stand where they stand: what is missing in the middle of a text moves nothing.
    text = '{"name": "cat" "age": 12}'
    length = len(engine.encode(text)) + 4
    person = json.loads(refine(engine, text, 0.0, constraint=PERSON, max_tokens=length))
    assert list(person) == ["name", "age"]


@pytest.mark.parametrize("policy", [name for name in PRESETS if not PRESETS[name].planned])
def test_every_policy_refines_a_draft_to_a_word(engine: Engine, policy: str):
    preset = PRESETS[policy]
    fields: dict[str, Any] = {"edits": EditParams(threshold=0.05, max_rounds=2)}
    if not preset.revises or preset.tosses:
        fields = {"steps": 24} if preset.tosses else {}
    for seed, strength in enumerate((0.0, 0.5, 1.0)):
        if preset.tosses and strength < 1.0:
            continue
        given = {"policy": policy, "constraint": DATE, "max_tokens": 12, "seed": seed, **fields}
        assert re.fullmatch(DATE.source, refine(engine, "the 17th of May", strength, **given))


def test_the_same_alone_and_in_company(engine: Engine):
    params = [
        GenerationParams(
            draft=Draft("2024-05-1x", strength),
            constraint=DATE,
            max_tokens=12,
            seed=seed,
            temperature=1.0,
        )
        for seed, strength in enumerate((0.0, 0.3, 0.6, 1.0))
    ]
    alone = [engine.generate(["the"], each)[0].token_ids for each in params]
    frames = engine._run([engine.prepare("the", each) for each in params])
    for tokens, own in zip(alone, frames.values(), strict=True):
        together = dict(pair for each in own for pair in each.tokens)
        assert tuple(together[position] for position in range(len(tokens))) == tokens


def test_what_is_kept_is_counted_as_accepted(engine: Engine):
    params = GenerationParams(
        draft=Draft("2024x05-17", 0.0), constraint=DATE, max_tokens=10, edits=False, seed=1
    )
    usage = engine.generate(["the"], params)[0].usage
    assert usage.accepted_tokens == len(engine.encode("2024x05-17")) - 1


def test_what_is_written_from_left_to_right_takes_no_draft(engine: Engine):
    open_person = Constraint(
        kind="json_schema",
        source=PERSON.source.replace(', "additionalProperties": false', ""),
    )
    params = GenerationParams(draft=Draft("{}"), constraint=open_person, max_tokens=40)
    sentence = (
        "this json_schema is written from left to right, .* take a regex, a choice or a schema "
        "that is filled in any order, got a draft; it goes in no other order, because an object "
        "may have properties that it does not name"
    )
    with pytest.raises(InvalidRequest, match=sentence):
        engine.prepare("the", params)
