"""A mixed batch: 16 requests of 16 to 512 tokens, against as many tokens at the best uniform rate.

The uniform runs are 16 requests of one length each; the best of their rates is what a mixed batch
would have if lengths did not matter. Block-causal, with the cache of settled blocks, so that a
token costs about the same in a long answer as in a short one. What is lost is the tail: the
longest answers go on alone when the others are done.
"""

from __future__ import annotations

import statistics
from functools import partial

from diffusiongpt.engine import Engine, GenerationParams

from measure import in_turn, parse_arguments, ratio, report, write_random_model


def main() -> None:
    """Measure and report."""
    options = parse_arguments(__doc__, requests=16, prompt=32, shortest=16, longest=512, block=8)
    shortest, longest = (8, 32) if options.quick else (options.shortest, options.longest)
    folder = write_random_model(options.quick, options.block)
    engine = Engine.from_pretrained(folder, prefix_cache_bytes=0, device=options.device)
    growth = (longest / shortest) ** (1 / (options.requests - 1))
    lengths = [round(shortest * growth**index) for index in range(options.requests)]
    uniform = sorted({shortest, lengths[options.requests // 2], longest})
    runs = {"mixed": lengths, **{f"all_{each}": [each] * options.requests for each in uniform}}
    seconds = in_turn(
        options.repeats,
        **{name: partial(run_batch, engine, options.prompt, each) for name, each in runs.items()},
    )
    rates = {name: [sum(runs[name]) / each for each in values] for name, values in seconds.items()}
    best = max(list(runs)[1:], key=lambda name: statistics.median(rates[name]))
    result = {
        "lengths": lengths,
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "best_uniform": best,
        "times_the_ideal_time": ratio(rates[best], rates["mixed"]),
        "forwards_with_a_quarter_or_less": share_of_tail(lengths),
    }
    report(options, "mixed", "<= 1.25 times the time at the best uniform rate", result)


def run_batch(engine: Engine, prompt_length: int, lengths: list[int]) -> None:
    """Denoise answers of these lengths together, two tokens a step."""
    requests = [
        engine.prepare(
            [5 + (shift + i) % 50 for i in range(prompt_length)],
            GenerationParams(
                max_tokens=length,
                steps=length // 2,
                policy="confidence",
                seed=shift,
                ignore_eos=True,
            ),
        )
        for shift, length in enumerate(lengths)
    ]
    for request in requests:
        engine.add(request)
    while not engine.is_idle:
        engine.step()


def share_of_tail(lengths: list[int]) -> float:
    """The share of the steps in which at most a quarter of the requests are still running, if
    steps go with lengths."""
    ordered = sorted(lengths)
    return 1 - ordered[-len(ordered) // 4 - 1] / ordered[-1]


if __name__ == "__main__":
    main()
