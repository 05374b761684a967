"""Block-causal decoding with the cache of settled blocks against recomputing the canvas."""

from __future__ import annotations

import statistics

from diffusiongpt.engine import Engine, GenerationParams

from measure import in_turn, parse_arguments, ratio, report, write_random_model


def main() -> None:
    """Measure and report one request and, per token, a batch; float32, so tokens are compared."""
    options = parse_arguments(__doc__, prompt=64, length=1024, block=32, requests=8)
    length = 32 if options.quick else options.length
    block = 8 if options.quick else options.block
    folder = write_random_model(options.quick, block, max_position_embeddings=2048)
    common = {"dtype": "float32", "token_budget": 32768, "device": options.device}
    cached = Engine.from_pretrained(folder, **common)
    plain = Engine.from_pretrained(folder, cache_blocks=False, **common)
    prompts = [[5 + (shift + i) % 50 for i in range(options.prompt)] for shift in range(8)]
    prompts = prompts[: options.requests]
    params = GenerationParams(
        max_tokens=length, steps=length // 4, policy="confidence", seed=1, ignore_eos=True
    )
    answers = {
        name: [answer.token_ids for answer in engine.generate(prompts, params)]
        for name, engine in (("cached", cached), ("recomputed", plain))
    }
    seconds = in_turn(
        options.repeats,
        recomputed=lambda: plain.generate(prompts, params),
        cached=lambda: cached.generate(prompts, params),
    )
    result = {
        "requests": len(prompts),
        "new_tokens_each": length,
        "block_length": block,
        "same_tokens": answers["cached"] == answers["recomputed"],
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "times_faster": ratio(seconds["recomputed"], seconds["cached"]),
    }
    report(options, "cache", ">= 10 times faster, same tokens", result)


if __name__ == "__main__":
    main()
