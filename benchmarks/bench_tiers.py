"""Structured output in three tiers: forwards of an answer from left to right, in any order, and on
a scaffold of the schema's keys, for the schemas that have keys and go in any order.

The laws differ: on a scaffold a value must fit into its room. So the answers' tokens are told, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from bench_structured import SCHEMAS, is_valid, name_of, run, with_schema

from diffusiongpt.engine import Engine, GenerationParams
from diffusiongpt.engine.automaton import NotRegular
from diffusiongpt.engine.scaffold import pieces_of

from measure import parse_arguments, report


def main() -> None:
    """Measure and report."""
    options = parse_arguments(__doc__, takes_model=True, answers=4, tokens=320, room=16, slots=16)
    engine = Engine.from_pretrained(options.model, num_slots=options.slots, device=options.device)
    tokens, room = (96, 6) if options.quick else (options.tokens, options.room)
    params = GenerationParams(max_tokens=tokens, temperature=1.0)
    keyed = [
        index for index in range(2 if options.quick else len(SCHEMAS)) if has_keys(engine, index)
    ]
    chosen = keyed if options.quick else keyed * options.answers
    asks = [with_schema(params, index).replace(seed=seed) for seed, index in enumerate(chosen)]
    names = [name_of(index) for index in chosen]
    result: dict[str, Any] = {
        "schemas": len(set(names)),
        "answers": len(asks),
        "room": room,
    }
    result["any_order"] = measure(engine, asks, names)
    on_scaffolds = [ask.replace(scaffold=room) for ask in asks]
    result["scaffold"] = measure(engine, on_scaffolds, names)
    with patch("diffusiongpt.engine.languages.parts_of", side_effect=NotRegular):
        engine = Engine.from_pretrained(
            options.model, num_slots=options.slots, device=options.device
        )
        result["left_to_right"] = measure(engine, asks, names)
    report(options, "tiers", "fewer forwards the more is known", result)


def has_keys(engine: Engine, index: int) -> bool:
    """Whether a scaffold of a schema has fixed text, and values."""
    constraint = with_schema(GenerationParams(), index).constraint
    assert constraint is not None
    is_in_order = engine.compile(constraint).is_in_order
    return not is_in_order and len(pieces_of(constraint.source)) > 1


def measure(engine: Engine, asks: Sequence[GenerationParams], names: Sequence[str]) -> Any:
    """What the answers cost, and whether they are valid."""
    done, cost = run(engine, list(asks))
    count = len(done)
    valid = [is_valid(each, SCHEMAS[name]) for each, name in zip(done, names, strict=True)]
    return cost | {
        "share_valid": sum(valid) / count,
        "forwards_of_an_answer": sum(each.usage.nfe for each in done) / count,
        "tokens_of_an_answer": sum(each.usage.completion_tokens for each in done) / count,
        "characters_of_an_answer": sum(len(each.text) for each in done) / count,
        "grammar_ms_of_an_answer": 1e3 * sum(each.usage.grammar_seconds for each in done) / count,
    }


if __name__ == "__main__":
    main()
