"""Replayed forwards against eager ones, at several numbers of packed tokens.

On CUDA a replay is one graph, and this is what it saves. On the CPU it is the same function on
padded tokens under one mask, so it only shows that the path runs: expect a ratio below 1.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.model import LoadedModel

from measure import in_turn, parse_arguments, ratio, report, write_random_model


def main() -> None:
    """Measure and report, in canvases of `canvas` tokens."""
    options = parse_arguments(__doc__, canvas=60, largest=2048)
    largest = 128 if options.quick else options.largest
    folder = write_random_model(options.quick)
    eager, captured = (load_model(folder, device=options.device) for _ in range(2))
    captured.capture(largest=largest, max_canvases=64)
    result: dict[str, Any] = {"attention": captured.captured_attention, "tokens": {}}
    for num_canvases in (1, 2, 4, 8, 16, 32):
        if num_canvases * options.canvas <= largest:
            lengths = (options.canvas,) * num_canvases
            result["tokens"][sum(lengths)] = measure(options.repeats, eager, captured, lengths)
    result["ways"] = {way: count for way, count in captured.ways.items() if count}
    report(options, "capture", "no forward slower than eagerly, on CUDA", result)


def measure(
    repeats: int, eager: LoadedModel, captured: LoadedModel, lengths: tuple[int, ...]
) -> dict[str, Any]:
    """Seconds of a forward, and how many times faster a replay is."""
    ids = torch.randint(5, eager.vocab_size, (1, sum(lengths)), device=eager.device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(eager.device)
    seconds = in_turn(
        repeats,
        eager=partial(eager.backbone, ids, positions, eager.plan(*lengths)),
        captured=partial(captured.backbone, ids, positions, captured.plan(*lengths)),
    )
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "times_faster": ratio(seconds["eager"], seconds["captured"]),
    }


if __name__ == "__main__":
    main()
