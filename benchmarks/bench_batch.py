"""Sixteen requests at once in the engine against the plain loop, one after another."""

from __future__ import annotations

import statistics

from diffusiongpt.engine import Engine, GenerationParams

from measure import MASK, in_turn, parse_arguments, ratio, report, write_random_model
from plain_loop import PlainLoop


def main() -> None:
    """Measure and report; the loop runs `sample` of the requests, its time a request is alike."""
    options = parse_arguments(
        __doc__, requests=16, sample=2, prompt=64, length=192, steps=192, compile=0
    )
    folder = write_random_model(options.quick)
    length, steps = (16, 16) if options.quick else (options.length, options.steps)
    prompts = [[5 + (shift + i) % 50 for i in range(options.prompt)] for shift in range(16)]
    prompts = (prompts * options.requests)[: options.requests]
    loop = PlainLoop(folder, MASK, [0, 1, MASK], options.device)
    engine = Engine.from_pretrained(folder, compile=bool(options.compile), device=options.device)
    params = GenerationParams(
        max_tokens=length, steps=steps, policy="ancestral", seed=1, ignore_eos=True
    )
    sample = prompts[: options.sample]
    seconds = in_turn(
        options.repeats,
        loop=lambda: [loop.generate(p, length, steps, seed=i) for i, p in enumerate(sample)],
        engine=lambda: engine.generate(prompts, params),
    )
    rate = {
        "loop": [len(sample) * length / each for each in seconds["loop"]],
        "engine": [len(prompts) * length / each for each in seconds["engine"]],
    }
    result = {
        "requests": len(prompts),
        "new_tokens_each": length,
        "tokens_per_second": {name: statistics.median(values) for name, values in rate.items()},
        "times_the_rate": ratio(rate["engine"], rate["loop"]),
    }
    report(options, "batch", ">= 15 times the tokens per second", result)


if __name__ == "__main__":
    main()
