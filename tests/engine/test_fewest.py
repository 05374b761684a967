"""The fewest tokens of a text of a language that is not deterministic: against every text."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from diffusiongpt.engine import fewest
from diffusiongpt.engine.automaton import TooLarge
from diffusiongpt.engine.closing import keeps_closing
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.expression import parts_of_regex
from diffusiongpt.engine.fewest import find_fewest
from diffusiongpt.engine.languages import Languages, short_parts_of
from diffusiongpt.engine.lifted import LiftedAutomaton
from diffusiongpt.engine.vocabulary import Vocabulary


@pytest.mark.parametrize(
    "regex",
    [
        "",
        "the cat sat on the mat",
        r"[a-z]{9,}",
        ".{12}",
        r"(the|once upon a time|there was){2}",
        r"[a-z]+@[a-z]+\.(com|org)",
        r'"[a-z ]{9,40}"',
        "(.*a){3}b",
        "(a|b)*a(a|b){5}",
        "(the ){1,9}(cat|dog)s?",
        r"\d{4}-\d{2}-\d{2}",
        "(?:a?){40}(é|ß)x*y",
        ".*the cat.*dog",
    ],
)
def test_as_few_tokens_as_the_deterministic_automaton_finds(vocabulary: Vocabulary, regex: str):
    found = find_fewest(parts_of_regex(regex), vocabulary.trie, 64)
    automaton = parts_of_regex(regex).determine()
    shortest = LiftedAutomaton(automaton, vocabulary).shortest(64)
    assert found is not None
    assert shortest is not None
    assert len(found) == len(shortest)
    assert automaton.accepts(vocabulary.spell(found))
    if found:
        assert find_fewest(parts_of_regex(regex), vocabulary.trie, len(found) - 1) is None


@pytest.mark.parametrize(
    "text", ["", "the cat sat on the mat", "xyzxyzé😀", "aaaaaaaaa", "the the"]
)
def test_the_fewest_tokens_of_one_text(vocabulary: Vocabulary, text: str):
    data = text.encode()
    pieces = {piece for _, piece in vocabulary.spelled()}

    @cache
    def least(start: int) -> int:
        ends = [end for end in range(start + 1, len(data) + 1) if data[start:end] in pieces]
        return 0 if start == len(data) else 1 + min(map(least, ends))

    found = vocabulary.fewest(data)
    assert found is not None
    assert vocabulary.spell(found) == data
    assert len(found) == least(0)


def test_a_language_without_a_text_has_none(vocabulary: Vocabulary):
    assert find_fewest(parts_of_regex(r"[^\w\W]"), vocabulary.trie, 64) is None


def test_what_takes_too_many_looks_is_given_up(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fewest, "MAX_LOOKS", 100)
    with pytest.raises(TooLarge):
        find_fewest(parts_of_regex("the cat sat.{20}"), vocabulary.trie, 64)


PERSON = {"name": {"type": "string"}, "age": {"type": "integer"}, "pet": {"enum": ["the", "cat"]}}
NODE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "the": {"type": "integer", "minimum": 10},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["the", "next"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "object"}, "{}"),
        ({"type": "object", "properties": PERSON, "required": ["age"]}, '{"age":0}'),
        ({"type": "object", "required": ["a"], "minProperties": 0}, '{"a":0}'),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, '{"the":10,"next":null}'),
        ({}, "0"),
        ({"type": "array", "items": {"$ref": "#"}, "maxItems": 9}, "[]"),
        ({"type": "object", "properties": PERSON, "required": ["name", "x"]}, '{"name":"","x":0}'),
        (
            {
                "type": "object",
                "properties": {
                    "mail": {"type": "string", "format": "email"},
                    "ip": {"type": "string", "format": "ipv4"},
                    "code": {"type": "string", "pattern": "^[a-z]{2,9}-x?$"},
                    "word": {"type": "string", "pattern": "b+", "minLength": 3},
                },
                "required": ["mail", "ip", "code", "word"],
            },
            '{"mail":"a@b","ip":"0.0.0.0","code":"aa-","word":"aab"}',
        ),
        (
            {
                "type": "array",
                "items": {"type": "object", "properties": PERSON, "required": ["pet"]},
                "minItems": 2,
            },
            '[{"pet":"the"},{"pet":"the"}]',
        ),
    ],
)
def test_of_a_schema_that_is_not_regular_it_is_known_too(
    vocabulary: Vocabulary, schema: Any, text: str
):
    constraint = Constraint(kind="json_schema", source=json.dumps(schema))
    found = find_fewest(short_parts_of(constraint), vocabulary.trie, 64)
    expected = vocabulary.fewest(text.encode())
    assert found is not None
    assert expected is not None
    assert len(found) <= len(expected)
    language = Languages(vocabulary, longest=64).compile(constraint)
    assert not language.is_shortest_known or language.automaton
    assert len(language.shortest) <= len(expected)
    assert keeps_closing(language.matcher, language.shortest)
