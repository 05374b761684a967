"""The output head with its statistics and draws: in chunks, compiled, and as one Triton kernel.

A run is what a step asks of so many rows: statistics of all of them, and a draw for each. On CUDA
the most memory that a run takes beside its input is told, too. Without CUDA, or without Triton,
there is no kernel, and the record says so.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.randomness import Purpose, counter_keys
from diffusiongpt.engine.rows import DrawParams
from diffusiongpt.engine.sampling import Head

from measure import in_turn, parse_arguments, ratio, report

# Vocabulary and hidden size: the bundled model's, and those of Qwen3-1.7B.
SHAPES = {"bundled": (4096, 256), "qwen3_1.7b": (151_936, 2048)}
MINUSCULE = {"bundled": (64, 32)}
NUM_ROWS = (1, 4, 16, 64, 256, 512)
CHUNK = 512
NUM_BANNED = 3


def main() -> None:
    """Measure and report, for up to `most_rows` rows; 0 is 512 on CUDA and 16 elsewhere."""
    options = parse_arguments(__doc__, most_rows=0)
    on_cuda = options.device.startswith("cuda")
    most = options.most_rows or (4 if options.quick else 512 if on_cuda else 16)
    shapes = MINUSCULE if options.quick else SHAPES
    result = {name: measure_shape(options, most, *shape) for name, shape in shapes.items()}
    report(options, "head", "the kernel is never the slowest, on CUDA (not measured yet)", result)


def measure_shape(
    options: Namespace, most: int, vocab_size: int, hidden_size: int
) -> dict[str, Any]:
    """Each way at each number of rows, for random weights in bfloat16."""
    product = nn.Linear(hidden_size, vocab_size, bias=False, device=options.device)
    product = product.to(torch.bfloat16).requires_grad_(False)
    heads = {"chunked": new_head(product)}
    if not options.quick:  # compiling takes longer than all the rest
        heads["compiled"] = new_head(product)
        heads["compiled"].compile(vocab_size)
    result: dict[str, Any] = {"vocabulary": vocab_size, "hidden": hidden_size, "rows": {}}
    try:
        fused = new_head(product)
        fused.fuse(torch.clone, product)
        heads["fused"] = fused
    except LoadError as error:
        result["not_fused"] = str(error)
    for num_rows in NUM_ROWS:
        if num_rows <= most:
            result["rows"][num_rows] = measure(options.repeats, heads, product, num_rows)
    return result


def new_head(product: nn.Linear) -> Head:
    banned = torch.arange(NUM_BANNED, device=product.weight.device)
    return Head(lambda hidden: product(hidden).float(), banned, chunk=CHUNK, pad=False)


@torch.inference_mode()
def measure(
    repeats: int, heads: dict[str, Head], product: nn.Linear, num_rows: int
) -> dict[str, Any]:
    """Medians, what the kernel gains over the others, and each way's memory on CUDA."""
    device = product.weight.device
    hidden = torch.randn(num_rows, product.in_features, device=device).to(torch.bfloat16)
    runs = {name: partial(look_and_draw, head, hidden) for name, head in heads.items()}
    seconds = in_turn(repeats, **runs)
    result: dict[str, Any] = {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()}
    }
    if "fused" in seconds:
        result["times_faster_than"] = {
            name: ratio(values, seconds["fused"])
            for name, values in seconds.items()
            if name != "fused"
        }
    if device.type == "cuda":
        result["bytes"] = {name: peak_bytes(run) for name, run in runs.items()}
    return result


def look_and_draw(head: Head, hidden: Tensor) -> None:
    """What a step asks of these rows."""
    row = torch.arange(len(hidden), device=hidden.device)
    ones = torch.ones(len(hidden), device=hidden.device)
    key = counter_keys(row, Purpose.DRAW, row)
    head.statistics(hidden, row * 0)
    head.draw(hidden, DrawParams(key, ones, ones, row * 0, ones * 0), truncate=False)


def peak_bytes(run: Callable[[], None]) -> int:
    """The most memory on the device that a run takes beside what is there already."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
