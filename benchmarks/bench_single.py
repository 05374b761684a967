"""One request: the engine against the plain loop; same weights, canvas, steps and law."""

from __future__ import annotations

import statistics

from diffusiongpt.engine import Engine, GenerationParams

from measure import MASK, in_turn, parse_arguments, ratio, report, write_random_model
from plain_loop import PlainLoop


def main() -> None:
    """Measure and report."""
    options = parse_arguments(__doc__, prompt=64, length=192, steps=192, compile=0)
    folder = write_random_model(options.quick)
    length, steps = (16, 16) if options.quick else (options.length, options.steps)
    prompt = [5 + index % 50 for index in range(options.prompt)]
    loop = PlainLoop(folder, MASK, [0, 1, MASK], options.device)
    engine = Engine.from_pretrained(folder, compile=bool(options.compile), device=options.device)
    params = GenerationParams(
        max_tokens=length, steps=steps, policy="ancestral", seed=1, ignore_eos=True
    )
    forwards = engine.generate([prompt], params)[0].usage.nfe
    seconds = in_turn(
        options.repeats,
        loop=lambda: loop.generate(prompt, length, steps, seed=1),
        engine=lambda: engine.generate([prompt], params),
    )
    result = {
        "canvas": len(prompt) + length,
        "new_tokens": length,
        "forwards": {"loop": steps, "engine": forwards},
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "times_faster": ratio(seconds["loop"], seconds["engine"]),
    }
    report(options, "single", ">= 12 times faster", result)


if __name__ == "__main__":
    main()
