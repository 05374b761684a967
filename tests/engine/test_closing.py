"""How little room a text of a language takes: against trying all of its texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from diffusiongpt.engine.closing import find_shortest, keeps_closing
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.languages import Language, Languages
from diffusiongpt.engine.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def languages(vocabulary: Vocabulary) -> Languages:
    return Languages(vocabulary, longest=128)


def plain_fewest(vocabulary: Vocabulary, text: bytes) -> int:
    """The fewest tokens of a text, by trying every first token."""
    pieces = {data for _, data in vocabulary.spelled()}

    @cache
    def rest_of(start: int) -> int:
        ends = [end for end in range(start + 1, len(text) + 1) if text[start:end] in pieces]
        return 0 if start == len(text) else 1 + min(map(rest_of, ends))

    return rest_of(0)


def spellings(value: Any) -> list[str]:
    """Every text of a value that a schema allows: with a space after `,` and `:` or without."""
    parts = json.dumps(value, separators=("\0,", "\0:")).split("\0")
    return ["".join(each) for each in itertools.product(parts[:1], *map(spaced, parts[1:]))]


def spaced(part: str) -> list[str]:
    return [part, f"{part[0]} {part[1:]}"]


PETS = ["the cat sat on the mat", "a dog", "xyzxyz", "the other children"]
PERSON = {
    "type": "object",
    "properties": {"the": {"enum": ["cat", "dogs"]}, "sat": {"type": "boolean"}},
    "required": ["the", "sat"],
    "additionalProperties": False,
}
FINITE: list[tuple[Any, list[Any]]] = [
    ({"enum": PETS}, PETS),
    ({"const": {"mat": ["the sun", 10]}}, [{"mat": ["the sun", 10]}]),
    (PERSON, [{"the": a, "sat": b} for a in ("cat", "dogs") for b in (True, False)]),
    (
        {"type": "array", "items": {"enum": ["on", "girl"]}, "minItems": 3, "maxItems": 3},
        [list(each) for each in itertools.product(["on", "girl"], repeat=3)],
    ),
    ({"anyOf": [{"const": 123456}, {"const": "and"}, {"const": None}]}, [123456, "and", None]),
]


@pytest.mark.parametrize(("schema", "values"), FINITE)
def test_where_all_texts_can_be_tried_the_room_is_that_of_the_shortest(
    languages: Languages, vocabulary: Vocabulary, schema: Any, values: list[Any]
):
    texts = [text.encode() for each in values for text in spellings(each)]
    least = min(plain_fewest(vocabulary, text) for text in texts)
    language = languages.compile(Constraint(kind="json_schema", source=json.dumps(schema)))
    assert len(language.shortest) == least
    # Where it is written from left to right.
    found = find_shortest(language.matcher, vocabulary, least)
    assert found is not None
    assert vocabulary.spell(found) in texts
    assert find_shortest(language.matcher, vocabulary, least - 1) is None
    exactly = Languages(vocabulary, longest=least)
    assert len(exactly.compile(language.constraint).shortest) == least
    with pytest.raises(InvalidRequest, match=f"no text of at most {least - 1} tokens"):
        Languages(vocabulary, longest=least - 1).compile(language.constraint)


@pytest.mark.parametrize(
    "texts",
    [PETS, ["xyz", "the sun"], ["", "a"], ["é" * 9, "the cat sat on the mat and"], ["aaaaaaaaa"]],
)
def test_the_shortest_choice_is_the_one_of_fewest_tokens(
    languages: Languages, vocabulary: Vocabulary, texts: Sequence[str]
):
    choice = Constraint(kind="choice", source=json.dumps(texts))
    language = languages.compile(choice)
    least = min(plain_fewest(vocabulary, text.encode()) for text in texts)
    assert len(language.shortest) == least
    # Where it is written from left to right.
    found = languages._shortest_choice(texts, language.matcher)
    assert found is not None
    assert len(found) == least


def regex(languages: Languages, source: str) -> Language:
    return languages.compile(Constraint(kind="regex", source=source))


@pytest.mark.parametrize(
    "source",
    [
        r"[a-z]{9,}",
        r"[^a-z]{12}",
        r".{30}",
        r"(the|once upon a time|there was){2}",
        r"[a-z]+@[a-z]+\.(com|org)",
        r'"[a-z ]{9,40}"',
        r"#[0-9a-f]{6}",
        r"(the ){1,9}(cat|dog)s?",
    ],
)
def test_a_search_without_an_automaton_finds_as_short_a_text(
    languages: Languages, vocabulary: Vocabulary, source: str
):
    language = regex(languages, source)
    assert language.automaton is not None
    found = find_shortest(language.matcher, vocabulary, 128)
    assert found is not None
    assert len(found) == len(language.shortest)
    assert keeps_closing(language.matcher, found)


def test_special_tokens_are_kept_apart(languages: Languages, vocabulary: Vocabulary):
    source = 'start: "the cat sat on" <|im_start|> ("mat" | "the mat") <|im_end|>'
    language = languages.compile(Constraint(kind="grammar", source=source))
    texts = [b"the cat sat on", b"mat"]
    assert len(language.shortest) == 2 + sum(plain_fewest(vocabulary, each) for each in texts)
    assert keeps_closing(language.matcher, language.shortest)
