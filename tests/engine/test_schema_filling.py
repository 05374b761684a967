"""JSON schemas filled in any order: against enumeration, in several holes, by every policy."""

from __future__ import annotations

import itertools
import json
import random
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator

from diffusiongpt.engine import Constraint, Engine, GenerationParams, Hole, Infill
from diffusiongpt.engine.anyorder import AnyOrderGuide, Stretch
from diffusiongpt.engine.automaton import NotRegular
from diffusiongpt.engine.closing import keeps_closing
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.languages import Languages
from diffusiongpt.engine.lifted import LiftedAutomaton
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.schema import parts_of_schema
from diffusiongpt.engine.tokenizer import Tokenizer
from diffusiongpt.engine.vocabulary import Vocabulary, as_set, members

from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

SECTION = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
TOKENS = ['{"', "a", '":', "1", "2", ",", ' "', "}", "[", "]", "true"]
SCHEMAS = json.loads((Path(__file__).parents[2] / "benchmarks/schemas.json").read_text("utf-8"))
LEFT_TO_RIGHT = {"nothing but an object", "all of two", "a tree", "a linked list"}
PAD, STOP = len(TOKENS), len(TOKENS) + 1
LENGTH = 5
CLOSED = {"additionalProperties": False}
DIGIT = {"type": "integer", "minimum": 1, "maximum": 2}
PAIR = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    **CLOSED,
}


def schema(value: Any) -> Constraint:
    return Constraint(kind="json_schema", source=json.dumps(value))


def toy_vocabulary() -> Vocabulary:
    spelled = [*(each.encode() for each in TOKENS), b"", b""]
    tokenizer = cast(Tokenizer, SimpleNamespace(token_bytes=spelled.__getitem__))
    return Vocabulary(tokenizer, size=len(spelled), stop_ids=(PAD, STOP), banned_ids=())


@cache
def values() -> list[tuple[tuple[int, ...], Any]]:
    """Every run of tokens that is JSON spelled as we spell it, and its value, by trying all."""
    found = []
    for length in range(1, LENGTH + 1):
        for tokens in itertools.product(range(PAD), repeat=length):
            text = "".join(TOKENS[each] for each in tokens)
            try:
                value = json.loads(text)
            except ValueError:
                continue
            if re.sub("([,:]) ", r"\1", text) == json.dumps(value, separators=(",", ":")):
                found.append((tokens, value))
    return found


def canvases(schema: Any) -> list[tuple[int, ...]]:
    """Every full canvas whose text satisfies a schema."""
    found, validator = [], Draft202012Validator(schema)
    for tokens, value in values():
        if validator.is_valid(value):
            ends = [(PAD,), (STOP,)] if len(tokens) < LENGTH else [()]
            found += [(*tokens, *end, *(PAD,) * (LENGTH - len(tokens) - 1)) for end in ends]
    return found


@pytest.mark.parametrize(
    "value",
    [
        {"type": "array", "items": DIGIT, "minItems": 1},
        {"type": "object", "additionalProperties": {"enum": [1, 12, True]}},
        {"anyOf": [DIGIT, {"type": "integer", "multipleOf": 11}, {"type": "boolean"}]},
        {"type": "array", "prefixItems": [{"type": "boolean"}], "items": DIGIT},
    ],
)
def test_what_is_allowed_is_what_some_whole_text_has(value: Any):
    automaton = LiftedAutomaton(parts_of_schema(json.dumps(value)).determine(), toy_vocabulary())
    words = canvases(value)
    chance = random.Random(1)
    assert len(words) > 4
    for _ in range(25):
        guide = AnyOrderGuide([Stretch(automaton, 0, LENGTH)])
        left = words
        filled: dict[int, int] = {}
        while not guide.is_complete:
            masked = [each for each in range(LENGTH) if each not in filled]
            expected = {each: as_set({word[each] for word in left}) for each in masked}
            assert guide.open_sets(0, LENGTH) == expected
            at = chance.choice(masked)
            filled[at] = chance.choice(list(members(expected[at])))
            assert guide.accept_at([at], [filled[at]], [0.0]) == [True]
            left = [word for word in left if word[at] == filled[at]]
        assert tuple(filled[each] for each in range(LENGTH)) in words


@pytest.mark.parametrize("name", SCHEMAS)
def test_fifty_schemas_are_satisfied_whatever_is_drawn_and_where(
    bundled_vocabulary: Vocabulary, name: str
):
    source = json.dumps(SCHEMAS[name])
    if name in LEFT_TO_RIGHT:
        with pytest.raises(NotRegular):
            parts_of_schema(source).determine()
        return
    automaton = LiftedAutomaton(parts_of_schema(source).determine(), bundled_vocabulary)
    shortest = automaton.shortest(200)
    assert shortest is not None
    chance, validator = random.Random(name), Draft202012Validator(SCHEMAS[name])
    for spare in (0, 5):
        length = len(shortest) + spare
        stretch, tokens = Stretch(automaton, 0, length), [0] * length
        for position in chance.sample(range(length), length):
            tokens[position] = chance.choice(list(members(stretch.allowed(position))))
            assert stretch.accept(position, tokens[position])
        text = bundled_vocabulary.spell(tokens).decode()
        assert validator.is_valid(json.loads(text)), text


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=3, section=SECTION)
    write_tiny_tokenizer(folder)
    return Engine.from_pretrained(folder, dtype="float32", max_tokens=128)


@pytest.mark.parametrize("policy", [name for name in PRESETS if not PRESETS[name].revises])
def test_every_hole_may_have_a_schema_of_its_own(engine: Engine, policy: str):
    array = {"type": "array", "items": {"type": "number", "minimum": -1}, "maxItems": 2}
    asked = [PAIR, array, {"enum": ["cat", None]}]
    holes = [Hole(36, constraint=schema(PAIR)), Hole(12), Hole(6, constraint=schema(asked[2]))]
    params = GenerationParams(policy=policy, constraint=schema(array), temperature=1.5, seed=4)
    done = engine.generate([Infill("the ", holes[0], " sat ", holes[1], " on ", holes[2])], params)
    for each, fill in zip(asked, done[0].fills, strict=True):
        assert Draft202012Validator(each).is_valid(json.loads(fill)), fill
    assert done[0].finish_reason is FinishReason.STOP


def test_keys_are_not_first_and_the_room_is_kept(engine: Engine):
    shortest = len(engine.compile(schema(PAIR)).shortest)
    params = GenerationParams(policy="random", constraint=schema(PAIR), temperature=1.0)
    for seed in range(6):
        length = shortest + 3 * (seed % 3)
        asked = params.replace(seed=seed, max_tokens=length, steps=length)
        done = engine.generate(["the cat"], asked)[0]
        assert Draft202012Validator(PAIR).is_valid(json.loads(done.text))
        order = [each.position for each in sorted(done.tokens, key=lambda each: each.order)]
        assert order != sorted(order)
    with pytest.raises(InvalidRequest, match=f"max_tokens must be at least {shortest}"):
        engine.prepare("the cat", params.replace(max_tokens=shortest - 1))


def test_schemas_that_llguidance_refuses_are_refused_in_any_order_too(engine: Engine):
    overlap = {"oneOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]}
    with pytest.raises(InvalidRequest, match="oneOf needs cases that exclude each other"):
        engine.compile(schema(overlap))
    for nothing in (
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"enum": ["a"], "type": "null"},
    ):
        with pytest.raises(InvalidRequest, match="this json_schema cannot be kept"):
            engine.compile(schema(nothing))


def opened(schema: Any) -> Any:
    """A schema whose objects may have any properties beside their own."""
    if isinstance(schema, list):
        return [opened(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    is_closed = schema.get("additionalProperties") is False
    kept = {key: opened(each) for key, each in schema.items()}
    return {k: v for k, v in kept.items() if not (is_closed and k == "additionalProperties")}


@pytest.mark.parametrize("name", sorted(set(SCHEMAS) - {"exactly one of two"}))
def test_no_schema_is_refused_because_its_objects_are_open(
    bundled_vocabulary: Vocabulary, name: str
):
    language = Languages(bundled_vocabulary, longest=256).compile(schema(opened(SCHEMAS[name])))
    assert keeps_closing(language.matcher, language.shortest)
