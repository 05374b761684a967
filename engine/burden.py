"""What a constraint would cost llguidance, counted before it sees it.

llguidance bounds the size of what it makes, but not every way there: repeats in a row, properties
that may be missing, expressions that must all match take time that grows with their square or
doubles with each, and a chain of references is followed on the stack, whose end is the process's.
What is counted here was measured: each limit is far beyond what languages need, and far below what
takes half a second or half of a stack. Torch-free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from diffusiongpt.engine.chains import heaviest_chain
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.schema_burden import check_count, check_repeats, check_schema

_MAX_CHAIN = 1_000  # rules, and brackets within them, that lead to each other
_MAX_ANDS = 12  # each doubles what is looked at

_DEFINITION = re.compile(
    r"^[ \t]*[?!]?([A-Za-z_]\w*)(?:\[[^\]\n]*\])?(?:\.-?\d+)?(?:\{[^}\n]*\})?[ \t]*:", re.MULTILINE
)
_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*')
_NAME = re.compile(r"[A-Za-z_]\w*")


def check_burden(constraint: Constraint) -> None:
    """Refuse what would take too long to read; raises InvalidRequest."""
    match constraint.kind:
        case "regex":
            check_repeats("regex", constraint.source)
        case "json_schema":
            check_schema(json.loads(constraint.source), "json_schema")
        case "grammar":
            _check_grammar(constraint.source)


def _check_grammar(source: str) -> None:
    for schema in _schemas_in(source):
        check_schema(schema, "grammar")
    rules = re.sub(r"%json\s*\{.*", " ", source)
    check_repeats("grammar", rules)
    bodies = _bodies(rules)
    edges = {name: _names_in(body, bodies) for name, body in bodies.items()}
    chain = heaviest_chain(edges, {name: 1 + _nesting(body) for name, body in bodies.items()})
    check_count(chain, _MAX_CHAIN, "grammar", "levels of rules, brackets included")
    ands = heaviest_chain(
        {name: [each for each in to if each.isupper()] for name, to in edges.items()},
        {name: body.count("&") for name, body in bodies.items()},
    )
    check_count(ands, _MAX_ANDS, "grammar", "of & in one terminal")


def _schemas_in(source: str) -> Iterator[object]:
    """The schemas that a grammar holds; those that are no JSON are llguidance's to refuse."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"%json\s*", source):
        try:
            yield decoder.raw_decode(source, found.end())[0]
        except (ValueError, RecursionError):
            continue


def _bodies(source: str) -> dict[str, str]:
    """The text of every rule without its literals."""
    plain = _LITERAL.sub('""', source)
    found = list(_DEFINITION.finditer(plain))
    ends = [*(each.start() for each in found[1:]), len(plain)]
    return {each[1]: plain[each.end() : end] for each, end in zip(found, ends, strict=False)}


def _names_in(body: str, known: Mapping[str, str]) -> list[str]:
    return [name for name in dict.fromkeys(_NAME.findall(body)) if name in known]


def _nesting(body: str) -> int:
    """How deep brackets are nested."""
    depth = deepest = 0
    for bracket in re.findall(r"[()\[\]]", body):
        depth += 1 if bracket in "([" else -1
        deepest = max(deepest, depth)
    return deepest
