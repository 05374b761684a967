"""Languages that are meant to take long are refused or accepted after a bounded amount of work,
which is counted and not timed. `benchmarks/bench_languages.py` tells the times."""

from __future__ import annotations

import contextlib
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diffusiongpt.engine import automaton, closing, fewest
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.languages import Languages
from diffusiongpt.engine.vocabulary import Vocabulary

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hostile.py"
LOOKS, FEWEST, STATES = 1_200_000, fewest.MAX_LOOKS, 10_000
# One step may go over a limit before it is noticed, by no more than this.
SLACK = 50_000


def load_hostile() -> dict[str, tuple[str, str]]:
    spec = importlib.util.spec_from_file_location("hostile", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, tuple[str, str]] = module.hostile_languages()
    return found


HOSTILE = load_hostile()
# The worst of each sort: the others are in the benchmark.
WORST = [
    "regex: repeats of repeats",
    "regex: one letter",
    "regex: letters that may be missing",
    "regex: characters that may be missing",
    "regex: words",
    "regex: alternatives anywhere",
    "regex: a class of thousands",
    "regex: neither nor",
    "schema: any properties",
    "schema: objects in a list",
    "schema: a wide constant",
    "schema: formats",
    "schema: 3000 optional properties",
    "schema: 3000 properties",
    "schema: one of 1500",
    "schema: a chain of 1500 references",
    "schema: a chain of 1500 pairs",
    "schema: a chain of 100 pairs",
    "schema: 40 expressions that must match",
    f"schema: multiples of {7**40}",
    "schema: multiples of many",
    "grammar: a chain of rules",
    "grammar: a chain of groups",
    "grammar: doubling terminals",
    "grammar: terminals that must match",
    "grammar: ambiguity",
    "grammar: palindromes",
    "choice: two huge texts",
    "choice: texts at random",
]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is counted while a language is compiled."""
    counted: Counter[str] = Counter()
    spend, look = automaton.Effort.spend, fewest._Ways._spend
    made = closing._State._made

    def count_looks(self: Any, looks: int) -> None:
        counted["looks"] += looks
        spend(self, looks)

    def count_ways(self: Any, looks: int) -> None:
        counted["ways"] += looks
        look(self, looks)

    def count_states(self: Any, *parts: Any) -> Any:
        counted["states"] += 1
        return made(self, *parts)

    monkeypatch.setattr(automaton.Effort, "spend", count_looks)
    monkeypatch.setattr(fewest._Ways, "_spend", count_ways)
    monkeypatch.setattr(closing._State, "_made", count_states)
    return counted


@pytest.mark.parametrize("name", WORST)
def test_the_work_is_bounded(vocabulary: Vocabulary, work: Counter[str], name: str):
    kind: Any
    kind, source = HOSTILE[name]
    languages = Languages(vocabulary, longest=512)
    with contextlib.suppress(InvalidRequest):
        assert len(languages.compile(Constraint(kind=kind, source=source)).shortest) <= 512
    # The parts of a language, and those of its short texts.
    assert work["looks"] <= 2 * LOOKS + SLACK
    assert work["ways"] <= FEWEST + SLACK
    assert work["states"] <= STATES


def test_what_was_found_of_hostile_languages_stays_so(vocabulary: Vocabulary):
    languages = Languages(vocabulary, longest=512)
    for name, shortest in {
        "regex: a group that may be missing": 0,
        "regex: a letter, or a million of another": 1,
        "choice: beginnings of each other": 3,
        "choice: one short text": 1,
    }.items():
        kind: Any
        kind, source = HOSTILE[name]
        assert len(languages.compile(Constraint(kind=kind, source=source)).shortest) <= shortest
