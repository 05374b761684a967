"""What a constraint may be: a kind, and a source of its form."""

from __future__ import annotations

import pytest

from diffusiongpt.engine.constraint import MAX_SOURCE_CHARACTERS, Constraint
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.params import GenerationParams


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_object", ""),
        ("json_schema", '{"type": "string"}'),
        ("json_schema", "true"),
        ("regex", "a*"),
        ("choice", '["yes", "no"]'),
        ("grammar", 'start: "a"'),
    ],
)
def test_every_kind_takes_a_source_of_its_form(kind: str, source: str):
    params = GenerationParams(constraint=Constraint(kind=kind, source=source))
    assert params.replace(seed=1).constraint == Constraint(kind=kind, source=source)


@pytest.mark.parametrize(
    ("kind", "source", "sentence"),
    [
        ("xml", "", "constraint.kind must be one of json_schema, .*, got 'xml'"),
        ("regex", 5, "a regex must be text, got int"),
        ("regex", "", "a regex must have at least 1 character, got ''"),
        ("grammar", "", "a grammar must have at least 1 character, got ''"),
        ("regex", "a" * (MAX_SOURCE_CHARACTERS + 1), "a regex takes at most 262144 characters"),
        ("json_object", "{}", "json_object takes no source, got '{}'"),
        ("json_schema", "{", "a json_schema must be JSON that can be read: "),
        ("json_schema", "[" * 100_000, "must be JSON that can be read: it is nested too deeply"),
        ("json_schema", "[1]", r"a json_schema must be an object, true or false, got '\[1\]'"),
        ("choice", "{}", "a choice must be a JSON list of 1 to 1024 texts"),
        ("choice", "[]", "a choice must be a JSON list of 1 to 1024 texts"),
        ("choice", '["\\ud800"]', "each choice must be text in valid Unicode, got "),
        ("regex", "\ud800", "a regex must be valid Unicode, got a lone surrogate"),
        ("choice", '["a", 5]', "each choice must be text in valid Unicode, got 5"),
    ],
)
def test_a_source_of_another_form_is_refused_in_a_sentence(kind: str, source: str, sentence: str):
    with pytest.raises(InvalidRequest, match=sentence) as refusal:
        Constraint(kind=kind, source=source)
    assert refusal.value.param == "constraint"


def test_a_constraint_is_no_text():
    with pytest.raises(InvalidRequest, match="constraint must be a Constraint, got str"):
        GenerationParams(constraint="[a-z]+")
