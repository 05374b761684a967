"""Automata of JSON schemas accept what jsonschema and `re` do, text for text, or are refused."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import json
import random
import re
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from diffusiongpt.engine.automaton import Automaton, Effort, NotRegular, TooLarge, combine
from diffusiongpt.engine.schema import parts_of_schema

CLOSED = {"additionalProperties": False}
NULL, BIT = {"type": "null"}, {"enum": [0, 1]}
OBJECT_TOKENS = ["{", "}", '"a":null', '"b": null', '"b":1', '"c": 0', ",", ", "]


def automaton_of(schema: Any) -> Automaton:
    return parts_of_schema(json.dumps(schema)).determine()


def accepts(automaton: Automaton, text: str) -> bool:
    return automaton.accepts(text.encode())


def is_spelled_as_agreed(text: str, value: Any) -> bool:
    """At most one space after a comma or a colon, nothing written twice, keys in order."""

    def is_in_order(value: Any) -> bool:
        if isinstance(value, dict):
            return list(value) == sorted(value) and all(map(is_in_order, value.values()))
        return not isinstance(value, list) or all(map(is_in_order, value))

    compact = re.sub("([,:]) ", r"\1", text)
    return compact == json.dumps(value, separators=(",", ":")) and is_in_order(value)


@pytest.mark.parametrize(
    ("schema", "tokens", "longest"),
    [
        (
            {"type": "object", "properties": {"a": NULL, "b": BIT}, "required": ["b"], **CLOSED},
            OBJECT_TOKENS,
            5,
        ),
        (
            {"type": "object", "properties": {"a": NULL, "b": NULL, "c": BIT}, **CLOSED},
            ['{"a":null', *OBJECT_TOKENS[:2], *OBJECT_TOKENS[3:]],
            5,
        ),
        (
            {
                "type": "object",
                "properties": {"a": BIT},
                "required": ["c"],
                "additionalProperties": NULL,
            },
            ['{"', "a", "b", 'c":', '":', "null", "1", '0,"', "}"],
            5,
        ),
        (
            {"type": "object", "patternProperties": {"^a+$": NULL}, **CLOSED},
            ['{"a', "a", "b", '":', "null", '1, "', "}"],
            5,
        ),
        (
            {"type": "array", "items": BIT, "minItems": 1, "maxItems": 3},
            ["[", "]", "[0", "1", "null", ",", ", "],
            5,
        ),
        (
            {"type": "array", "prefixItems": [NULL, BIT], "items": {"const": True}},
            ["[", "]", "1", "[null", ",true", ",", ", "],
            5,
        ),
        (
            {"type": "array", "prefixItems": [NULL], "items": False},
            ["[", "]", "1", "null", ",", ", "],
            5,
        ),
        (
            {"const": {"a": [1, {"b": 2}]}},
            ['{"a":[1', ",", ", ", '{"b":', " ", "2}]}"],
            5,
        ),
        (
            {"type": ["string", "null"], "enum": ["a", None, 1, "a b", True]},
            ['"', "a", " ", "b", "null", "1", "true"],
            5,
        ),
        (
            {"anyOf": [{"type": "array", "items": NULL}, {"type": "boolean"}, BIT]},
            ["[", "]", "null", "true", "1", ","],
            5,
        ),
        (
            {
                "allOf": [{"$ref": "#/$defs/a"}, {"required": ["a"]}],
                "$defs": {"a": {"type": "object", "properties": {"a": NULL}, **CLOSED}},
            },
            OBJECT_TOKENS,
            5,
        ),
        (
            {"type": "string", "minLength": 1, "maxLength": 2},
            ['"', "a", "\\n", "\\\\", '\\"', "é", "\\", "\n"],
            5,
        ),
    ],
)
def test_an_automaton_accepts_what_satisfies_the_schema(
    schema: Any, tokens: list[str], longest: int
):
    automaton, validator = automaton_of(schema), Draft202012Validator(schema)
    found = 0
    for length in range(1, longest + 1):
        for chosen in itertools.product(tokens, repeat=length):
            text = "".join(chosen)
            try:
                value = json.loads(text)
            except ValueError:
                assert not accepts(automaton, text), text
                continue
            # Characters are not spelled in ASCII alone.
            spelled = json.dumps(value, ensure_ascii=False)
            expected = validator.is_valid(value) and (
                spelled == text if isinstance(value, str) else is_spelled_as_agreed(text, value)
            )
            found += expected
            assert accepts(automaton, text) == expected, text
    assert found


@pytest.mark.parametrize(
    "words",
    [
        {"minimum": -1.25, "maximum": 10.5},
        {"exclusiveMinimum": -1, "exclusiveMaximum": 0.5},
        {"minimum": 0.12, "maximum": 0.121},
        {"minimum": 1.5},
        {"maximum": -0.5},
        {"exclusiveMaximum": 0},
        {"minimum": 0},
        {"maximum": 1e2, "minimum": 95, "exclusiveMinimum": 95.1},
        {"minimum": 2, "maximum": 1},
    ],
)
def test_numbers_within_bounds_are_all_decimals_there(words: dict[str, float]):
    automaton = automaton_of({"type": "number", **words})
    low = Decimal(repr(words.get("minimum", -1e9)))
    high = Decimal(repr(words.get("maximum", 1e9)))
    above = Decimal(repr(words.get("exclusiveMinimum", -1e9)))
    below = Decimal(repr(words.get("exclusiveMaximum", 1e9)))
    for length in range(1, 6):
        for chosen in itertools.product("-01259.", repeat=length):
            text = "".join(chosen)
            expected = bool(re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", text))
            if expected:
                value = Decimal(text)
                expected = low <= value <= high and above < value < below
                # A sign belongs to what may be less than zero.
                expected &= not (text.startswith("-") and max(low, above) >= 0)
            assert accepts(automaton, text) == expected, text


def test_what_is_beside_an_exclusive_bound_is_another_double():
    automaton = automaton_of({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})
    assert accepts(automaton, "0." + "0" * 13 + "1")
    assert accepts(automaton, "0." + "9" * 14)
    for text in ("0." + "0" * 400 + "1", "0." + "9" * 30, "0", "1", "0.0", "1.0"):
        assert not accepts(automaton, text)


@pytest.mark.parametrize(
    "words",
    [
        {"minimum": -120, "maximum": 57},
        {"exclusiveMinimum": 8.5, "maximum": 1001},
        {"exclusiveMinimum": 9, "exclusiveMaximum": 11},
        {"maximum": -7},
        {"minimum": 99},
        {"multipleOf": 7, "minimum": -100, "maximum": 999},
        {"multipleOf": 5.0},
        {"minimum": 3, "maximum": 2},
    ],
)
def test_integers_within_bounds_are_all_of_them(words: dict[str, float]):
    automaton = automaton_of({"type": "integer", **words})
    validator = Draft202012Validator({"type": "integer", **words})
    for value in range(-1200, 1300):
        assert accepts(automaton, str(value)) == validator.is_valid(value), value
    for text in ("01", "-01", "", "-", "1.0", "+1", "1e1"):
        assert not accepts(automaton, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "b",
        "^b",
        "b$",
        "^b$|a",
        "^(?:a|b)+$",
        "a|b$",
        "^$",
        r"\d",
        r"^\w\W?$",
        r"[^a\n]$",
        "^.b",
        r"\\|\"",
    ],
)
def test_patterns_are_found_as_they_are_in_the_text_that_is_meant(pattern: str):
    automaton = automaton_of({"type": "string", "pattern": pattern})
    short = automaton_of({"type": "string", "pattern": pattern, "minLength": 1, "maxLength": 2})
    for length in range(5):
        for chosen in itertools.product('ab1\n"\\', repeat=length):
            text = "".join(chosen)
            expected = bool(re.search(pattern.replace("$", r"\Z"), text))
            spelled = json.dumps(text)
            assert accepts(automaton, spelled) == expected, spelled
            assert accepts(short, spelled) == (expected and 1 <= length <= 2), spelled


def test_characters_that_readers_disagree_about_are_not_written():
    digit = automaton_of({"type": "string", "pattern": r"^\d$"})
    other = automaton_of({"type": "string", "pattern": r"^\D$"})
    for character in "٣७":
        assert not accepts(digit, f'"{character}"')
        assert not accepts(other, f'"{character}"')
    line = automaton_of({"type": "string", "pattern": "^.$"})
    assert accepts(line, '"é"')
    assert not accepts(line, '"\u2028"')


def words_of(automaton: Automaton, seed: str, count: int) -> Iterator[str]:
    """Some of the texts that an automaton accepts."""
    distance = np.where(automaton.accepting, 0, 10**6)
    for _ in automaton.table:
        ways = np.where(automaton.table > 0, distance[automaton.table], 10**6)
        distance = np.minimum(distance, 1 + ways.min(axis=1))
    chance = random.Random(seed)
    for _ in range(count):
        state, text, room = 1, bytearray(), chance.randrange(60)
        while not (automaton.accepting[state] and (len(text) >= room or chance.random() < 0.2)):
            following = [int(each) for each in np.unique(automaton.table[state]) if each]
            if len(text) >= room:
                following = [each for each in following if distance[each] < distance[state]]
            if not following:
                break
            target = chance.choice(following)
            text.append(chance.choice(np.flatnonzero(automaton.table[state] == target).tolist()))
            state = target
        yield text.decode()


@pytest.mark.parametrize(
    ("name", "read", "wrong"),
    [
        ("date", datetime.date.fromisoformat, "2023-02-29 1900-02-29 2024-13-01 0000-01-01"),
        ("time", datetime.time.fromisoformat, "24:00:00Z 12:00:00 12:60:00Z"),
        ("date-time", datetime.datetime.fromisoformat, "2024-02-30T12:00:00Z 2024-02-01"),
        ("ipv4", ipaddress.IPv4Address, "1.2.3 256.1.1.1 01.2.3.4"),
        ("ipv6", ipaddress.IPv6Address, "1::2::3 1:2:3:4:5:6:7 12345::"),
        ("uuid", uuid.UUID, "12345678-1234-1234-1234-12345678901"),
        ("email", re.compile(r"[^@\s]+@[^@\s]+").fullmatch, "a.b @b a@ .a@b a@-b"),
        ("hostname", re.compile(r"[\w.-]{1,}").fullmatch, "-a a- a..b"),
        ("uri", re.compile(r"[A-Za-z][\w.+-]*:[!-~]*").fullmatch, "a 1a:b http://ä /a"),
    ],
)
def test_formats_are_what_a_reader_of_them_reads(name: str, read: Any, wrong: str):
    automaton = automaton_of({"type": "string", "format": name})
    for text in words_of(automaton, name, 200):
        assert read(json.loads(text)), text
    for text in wrong.split():
        assert not accepts(automaton, json.dumps(text)), text
    if name == "date":
        assert accepts(automaton, '"2024-02-29"')
        assert accepts(automaton, '"2000-02-29"')


LOOP = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (LOOP, "#/$defs/a refers to itself"),
        ({"anyOf": [NULL, {"type": "array", "items": {"$ref": "#"}}]}, "# refers to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to itself"),
        ({"$ref": "#/$defs/none"}, "it refers to '#/"),
        ({"$ref": "https://example.org"}, "it refers to 'https"),
        ({"type": "object"}, "properties that it does not name"),
        ({"type": "object", "properties": {"a": NULL}}, "additionalProperties: false forbids"),
        ({}, "may be of any type"),
        ({"type": "array"}, "may be of any type"),
        ({"minLength": 2}, "may be of any type"),
        ({"type": "array", "items": NULL, "uniqueItems": True}, "uniqueItems is not kept"),
        ({"type": "string", "not": {"const": "a"}}, "not is not kept"),
        ({"type": "object", "minProperties": 1, **CLOSED}, "minProperties is not kept"),
        ({"enum": ["a", "bb"], "minLength": 2}, "lists values and asks more"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "ask different things"),
        ({"type": "string", "format": "iri"}, "the format 'iri'"),
        ({"type": "number", "multipleOf": 0.1}, "multipleOf is no integer"),
        *(
            ({"type": "string", "pattern": each}, "the pattern")
            for each in ("(?=a)", "a^b", r"\Aa", r"\p{L}", "a{,2}", "(?i)a", r"(a)\1")
        ),
        ({"const": "\ud800"}, "lone surrogate"),
    ],
)
def test_what_is_not_surely_regular_is_left_to_the_other_tier(schema: Any, why: str):
    with pytest.raises(NotRegular, match=re.escape(why)):
        automaton_of(schema)


def many(count: int) -> dict[str, Any]:
    """Definitions that stand for two of the one before each."""
    pair = {"type": "array", "prefixItems": [{"$ref": "#/$defs/0"}] * 2, "items": False}
    texts = {str(n): json.loads(json.dumps(pair).replace("/0", f"/{n + 1}")) for n in range(count)}
    return {"$ref": "#/$defs/0", "$defs": texts | {str(count): NULL}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 10**9},
        {"type": "string", "minLength": 5000},
        {"type": "array", "items": NULL, "maxItems": 10**8},
        {"type": "integer", "minimum": 0, "maximum": 10**300},
        {"type": "number", "minimum": 1e-300, "maximum": 1e300},
        {"type": "integer", "multipleOf": 12345},
        {"type": "string", "pattern": "(?:a?){9000}"},
        {"type": "string", "pattern": "^[ab]*a[ab]{14}$"},
        {"type": "string", "pattern": "^[ab]*a[ab]{9}$", "minLength": 3, "maxLength": 90},
        many(30),
        {"anyOf": [{"type": "string", "pattern": f"^x{n}$", "minLength": 2} for n in range(9000)]},
        json.loads('{"type":"array","items":' * 400 + '{"type":"null"}' + "}" * 400),
    ],
)
def test_what_is_too_large_is_given_up_by_a_count(schema: Any):
    with pytest.raises(TooLarge):
        automaton_of(schema)


def test_two_automata_are_combined_as_asked():
    one = automaton_of({"type": "integer", "minimum": 0, "maximum": 20})
    other = automaton_of({"type": "integer", "multipleOf": 6})
    both = combine(one, other, lambda a, b: a and b, Effort())
    left = combine(one, other, lambda a, b: a and not b, Effort())
    for value in range(-10, 40):
        is_in, divides = 0 <= value <= 20, value % 6 == 0
        assert accepts(both, str(value)) == (is_in and divides)
        assert accepts(left, str(value)) == (is_in and not divides)
