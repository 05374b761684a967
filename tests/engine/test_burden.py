"""What is refused unread because of what it would cost, and what is not."""

from __future__ import annotations

import itertools
import json
import re
from functools import reduce
from pathlib import Path
from random import Random
from typing import Any

import pytest

from diffusiongpt.engine.burden import check_burden
from diffusiongpt.engine.chains import heaviest_chain
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import InvalidRequest

SCHEMAS = Path(__file__).parents[2] / "benchmarks" / "schemas.json"
TEXT = {"type": "string"}


def burden(kind: Any, source: Any) -> str:
    """The refusal, or nothing."""
    text = source if isinstance(source, str) else json.dumps(source)
    try:
        check_burden(Constraint(kind=kind, source=text))
    except InvalidRequest as refusal:
        return str(refusal)
    return ""


def properties(count: int, **words: Any) -> Any:
    return {"type": "object", "properties": {f"p{i}": TEXT for i in range(count)}, **words}


def chain(count: int, link: Any) -> Any:
    places = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**places, f"d{count}": TEXT}}


def test_schemas_of_use_are_not_refused():
    for schema in json.loads(SCHEMAS.read_text(encoding="utf-8")).values():
        assert not burden("json_schema", schema)


@pytest.mark.parametrize(
    ("kind", "accepted", "refused", "sentence"),
    [
        ("regex", "a?" * 2000, "a?" * 2001, "at most 2000 repeats .* got 2001"),
        ("regex", r"\?" * 4000, "x{2}" * 2001, "at most 2000 repeats"),
        ("json_schema", properties(1500), properties(1501), "1500 properties that may be missing"),
        (
            "json_schema",
            properties(3000, required=[f"p{i}" for i in range(3000)]),
            properties(3001, required=[f"p{i}" for i in range(3001)]),
            "3000 properties of an object, got 3001",
        ),
        (
            "json_schema",
            chain(130, lambda to: {"items": to}),
            chain(140, lambda to: {"items": to}),
            "400 levels, references followed, got",
        ),
        ("json_schema", {"enum": [*range(19_998)]}, {"enum": [*range(20_001)]}, "20000 values"),
        ("json_schema", {"const": [[]] * 3999}, {"const": [[]] * 4000}, "4000 lists and objects"),
        (
            "json_schema",
            {"allOf": [{"pattern": f"a{i}"} for i in range(12)]},
            {"allOf": [{"pattern": f"a{i}"} for i in range(13)]},
            "12 expressions for one value, got 13",
        ),
        (
            "json_schema",
            {"type": "integer", "multipleOf": 1_000_000},
            {"type": "integer", "multipleOf": 7**6},
            "20000 as multipleOf, factors 2 and 5 aside, got 117649",
        ),
        (
            "json_schema",
            {"allOf": [{"multipleOf": 77}, {"multipleOf": 143}]},
            {"allOf": [{"multipleOf": p} for p in (7, 11, 13, 17, 19)]},
            "as multipleOf, .* got 323323",
        ),
        (
            "grammar",
            "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(990)) + '\nr990: "x"',
            "start: r0\n" + "\n".join(f"r{i}: (r{i + 1})" for i in range(600)) + '\nr600: "x"',
            "1000 levels of rules",
        ),
        (
            "grammar",
            "start: T\nT: " + " & ".join("/a/" for _ in range(13)),
            "start: T\nT: /a/ & U\nU: " + " & ".join("/a/" for _ in range(13)),
            "12 of & in one terminal, got 13",
        ),
        (
            "grammar",
            f"start: %json {json.dumps(properties(1500))}",
            f"start: %json {json.dumps(properties(1501))}",
            "this grammar cannot be kept: it takes at most 1500 properties",
        ),
    ],
)
def test_each_limit_is_told_with_what_is_accepted(
    kind: str, accepted: Any, refused: Any, sentence: str
):
    assert not burden(kind, accepted)
    assert re.search(sentence, burden(kind, refused))


def test_expressions_of_different_values_do_not_add_up():
    many = {f"p{i}": {"type": "string", "pattern": f"^a{i}$"} for i in range(100)}
    own = {"properties": {"mine": {"pattern": "x"}}}
    assert not burden("json_schema", {"allOf": [{"properties": many}, own]})
    cases = {"anyOf": [{"pattern": f"a{i}"} for i in range(50)]}
    assert not burden("json_schema", {"allOf": [cases, {"pattern": "b"}]})
    merged = [{"properties": {"name": {"pattern": f"a{i}"}}} for i in range(13)]
    assert "for one value" in burden("json_schema", {"allOf": merged})


def test_names_that_are_words_elsewhere_hide_nothing():
    hidden = {"properties": {"default": {"properties": {"const": properties(1501)}}}}
    assert "may be missing" in burden("json_schema", hidden)
    deep: Any = reduce(lambda inner, _: {"items": inner}, range(250), TEXT)
    assert not burden("json_schema", {"definitions": {"a": deep}, "items": deep})
    named = {"properties": {"definitions": deep, "a": {"$ref": "#/$defs/b"}}, "$defs": {"b": deep}}
    assert "levels" in burden("json_schema", named)
    assert "levels" in burden("json_schema", chain(300, lambda to: {"properties": {"enum": to}}))


def test_references_in_a_circle_end():
    node = {"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/properties/a"}}}
    assert not burden("json_schema", node)
    assert not burden("json_schema", {"allOf": [{"$ref": "#"}], "pattern": "a"})
    assert not burden("json_schema", {"$ref": "#/nowhere"})
    assert not burden("grammar", 'start: e\ne: e "+" e | "(" e ")" | /[0-9]+/')


@pytest.mark.parametrize("seed", range(40))
def test_the_heaviest_chain_against_every_path(seed: int):
    draw = Random(seed)
    places = "abcdef"[: draw.randint(1, 6)]
    # Edges that go on make no circle; then the bound is exact.
    edges = {one: [to for to in places if to > one and draw.random() < 0.5] for one in places}
    weight = {each: draw.randint(0, 9) for each in places}

    def heaviest(place: str) -> int:
        return weight[place] + max(map(heaviest, edges[place]), default=0)

    assert heaviest_chain(edges, weight) == max(map(heaviest, places))
    # With circles it is at least what any path without a place twice weighs.
    edges = {one: [to for to in places if draw.random() < 0.4] for one in places}
    paths = (path for n in range(1, 7) for path in itertools.permutations(places, n))
    most = max(
        sum(weight[each] for each in path)
        for path in paths
        if all(b in edges[a] for a, b in itertools.pairwise(path))
    )
    assert most <= heaviest_chain(edges, weight) <= sum(weight.values())
