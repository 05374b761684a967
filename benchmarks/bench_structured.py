"""Structured output: json_schema requests over 50 schemas at temperature 1; how many answers parse
and validate, and what a token costs beside an answer without a schema.

Told are the time of an answer token with a schema and without, which differ in the forwards that a
token takes, and of it the time that the host spends on grammars.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from diffusiongpt.engine import Constraint, Engine, GenerationParams
from diffusiongpt.engine.completion import Completion, complete
from diffusiongpt.engine.frame import FinishReason, Frame

from measure import parse_arguments, report

SCHEMAS = json.loads((Path(__file__).parent / "schemas.json").read_text(encoding="utf-8"))


def main() -> None:
    """Measure and report."""
    options = parse_arguments(__doc__, takes_model=True, requests=1000, tokens=320, slots=16)
    requests, tokens = (12, 64) if options.quick else (options.requests, options.tokens)
    engine = Engine.from_pretrained(options.model, num_slots=options.slots, device=options.device)
    params = GenerationParams(max_tokens=tokens, temperature=1.0, seed=0)
    plain = params.replace(max_tokens=32 if options.quick else 128, ignore_eos=True)
    began = time.perf_counter()
    languages = describe_languages(engine)
    compiling = time.perf_counter() - began
    asks = [with_schema(params, index) for index in range(requests)]
    run(engine, [plain] * options.slots)  # warms up
    without = run(engine, [plain.replace(seed=index) for index in range(max(requests // 5, 4))])
    done, cost = run(engine, asks)
    guiding = sum(each.usage.grammar_seconds for each in done)
    cost["grammar_ms_per_token"] = 1000.0 * guiding / cost["tokens"]
    wrong = [
        {"schema": name_of(index), "text": each.text[:200], "finish": str(each.finish_reason)}
        for index, each in enumerate(done)
        if not is_valid(each, SCHEMAS[name_of(index)])
    ]
    result = {
        "requests": requests,
        "schemas": len({name_of(index) for index in range(requests)}),
        "slots": options.slots,
        "share_valid": 1.0 - len(wrong) / requests,
        "wrong": wrong[:5],
        "compile_seconds": compiling,
        "with_schema": cost,
        "without": without[1],
        "times_the_time_of_a_token": cost["ms_per_token"] / without[1]["ms_per_token"],
        "grammar_share_of_time": guiding / cost["seconds"],
        "in_any_order": sum(each["size"] is not None for each in languages.values()),
        "languages": languages,
    }
    report(options, "structured", "every answer valid", result)


def describe_languages(engine: Engine) -> dict[str, Any]:
    """How each schema is filled, and how large its automaton is: states over bytes, pairs of states
    with a token between them."""
    told = {}
    for index, name in enumerate(SCHEMAS):
        constraint = with_schema(GenerationParams(), index).constraint
        assert constraint is not None
        began = time.perf_counter()
        language = engine.compile(constraint)
        seconds = time.perf_counter() - began
        size = language.automaton and language.automaton.size
        told[name] = {"size": size, "in_order_because": language.why_in_order, "seconds": seconds}
    return told


def name_of(index: int) -> str:
    """The schema of request `index`."""
    return list(SCHEMAS)[index % len(SCHEMAS)]


def with_schema(params: GenerationParams, index: int) -> GenerationParams:
    """What request `index` asks."""
    source = json.dumps(SCHEMAS[name_of(index)])
    return params.replace(seed=index, constraint=Constraint(kind="json_schema", source=source))


def is_valid(done: Completion, schema: Any) -> bool:
    """Whether an answer is whole, parses, and satisfies its schema."""
    try:
        value = json.loads(done.text)
    except ValueError:
        return False
    is_whole = done.finish_reason is FinishReason.STOP
    return is_whole and Draft202012Validator(schema).is_valid(value)


def run(engine: Engine, asks: list[GenerationParams]) -> tuple[list[Completion], dict[str, float]]:
    """All answers, as many at once as there are slots, and what they cost."""
    prompt = engine.encode_chat([{"role": "user", "content": "Tell me about Ann and her cat."}])
    began = time.perf_counter()
    requests = [engine.prepare(prompt, ask) for ask in asks]
    frames: dict[str, list[Frame]] = {each.request_id: [] for each in requests}
    backlog = list(reversed(requests))
    while backlog or not engine.is_idle:
        while backlog and engine.num_waiting < engine.config.num_slots:
            engine.add(backlog.pop())
        for frame in engine.step():
            frames[frame.request_id].append(frame)
    seconds = time.perf_counter() - began
    completions = [complete(frames[each.request_id], each.canvas) for each in requests]
    tokens = sum(each.usage.completion_tokens for each in completions)
    forwards = sum(each.usage.nfe for each in completions)
    return completions, {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_forward": tokens / forwards,
        "ms_per_token": 1000.0 * seconds / tokens,
        "ms_per_forward": 1000.0 * seconds / forwards,
    }


if __name__ == "__main__":
    main()
