"""A training step in bf16: its share of this machine's own bf16 matrix product rate.

Operations are counted by `diffusiongpt.training.flops`, product by product (forward, backward,
attention and head, which runs on the masked positions; what the optimiser computes is time and no
operation). The reference is the best of one large product and of the products of the model's own
matrices at its own number of positions, each round anew: all are taken in turn. So is a step whose
attention is SDPA, for which the model has a second copy: `times_faster_than_sdpa`.

`--rows N` rows a step and `--length L` positions a row instead of the shape's own; `--larger 0` and
`--bundled 0` leave a shape out. `--hidden D` measures a shape of your own instead: `--layers`,
`--heads` (of 64 unless said), `--intermediate` (1.5 times as wide unless said), `--vocabulary`,
`--window`. `--sdpa 0` leaves the second copy out, for shapes that fill the memory.
`--processor_time 1` counts the process's own time, for one thread on a core that others share.
For the timing of long runs set what docs/TRAINING.md says under "Speed on a CPU".
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from diffusiongpt.training import attention
from diffusiongpt.training.config import TrainingConfig
from diffusiongpt.training.config_file import from_mapping
from diffusiongpt.training.denoiser import Denoiser, build_network
from diffusiongpt.training.flops import step_flops
from diffusiongpt.training.noise import draw_corruption
from diffusiongpt.training.optimizer import build_optimizer

from measure import in_turn, parse_arguments, ratio, report

SPECIAL = {
    "<|pad|>": 0,
    "<|im_start|>": 1,
    "<|mask|>": 2,
    "<|delete|>": 3,
    "<|im_end|>": 4,
}
BLOCK = 8
Shape = dict[str, int]
# vocabulary, rows, length, and the model section of a configuration
SHAPES: dict[str, tuple[int, int, int, Shape]] = {
    "bundled": (
        4096,
        8,
        512,
        {
            "hidden_size": 256,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "intermediate_size": 640,
            "local_attention": 64,
        },
    ),
    "larger": (
        32768,
        2,
        512,
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "local_attention": 128,
        },
    ),
}
MINUSCULE: Shape = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "local_attention": 16,
}


def main() -> None:
    """Measure and report, for the bundled model and for a larger one."""
    options = parse_arguments(
        __doc__,
        compile=0,
        muon=0,
        processor_time=0,
        sdpa=1,
        bundled=1,
        larger=1,
        rows=0,
        length=0,
        hidden=0,
        layers=4,
        heads=0,
        intermediate=0,
        vocabulary=32768,
        window=128,
    )
    result: dict[str, Any] = {"processor_time": bool(options.processor_time)}
    for name, shape in shapes_of(options).items():
        result[name] = measure_shape(options, *shape)
    report(options, "training", ">= 45 % of the matrix product rate", result)


def shapes_of(options: Any) -> dict[str, tuple[int, int, int, Shape]]:
    """What to measure, by name."""
    if options.hidden:
        return {"given": (options.vocabulary, 8, 512, given_shape(options))}
    if options.quick:
        return {"bundled": (64, 2, 32, MINUSCULE)}
    return {name: shape for name, shape in SHAPES.items() if getattr(options, name)}


def given_shape(options: Any) -> Shape:
    """The shape that the flags describe."""
    return {
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads or max(options.hidden // 64, 1),
        "intermediate_size": options.intermediate or options.hidden * 3 // 2,
        "local_attention": options.window,
    }


def measure_shape(options: Any, vocabulary: int, rows: int, length: int, shape: Shape) -> Any:
    """Rates of a step and of every candidate for the reference, in Gflop/s."""
    optimizer = "muon" if options.muon else "adamw"
    rows, length = options.rows or rows, options.length or length
    config = from_mapping(
        {
            "model": shape,
            "data": {"max_seq_length": length},
            "diffusion": {"block_length": BLOCK},
            "run": {"batch_size": rows, "optimizer": optimizer},
        }
    )
    compiled = bool(options.compile)
    denoiser = make_denoiser(config, vocabulary, compiled)
    batch = draw_batch(config, vocabulary)
    headed = int(batch["masked"].sum())
    flops = step_flops(denoiser, (BLOCK,), rows, length, headed)
    products = candidates(denoiser.network, 2 * rows * length, options.quick)
    runs: dict[str, Callable[[], object]] = {name: run for name, (run, _) in products.items()}
    runs["backward"] = lambda: gradients(denoiser, batch)
    runs["step"] = step_of(denoiser, config, batch)
    if options.sdpa:
        other = make_denoiser(config, vocabulary, compiled)
        runs["of_sdpa"] = with_sdpa(step_of(other, config, batch))
    clock = time.process_time if options.processor_time else time.perf_counter
    seconds = in_turn(options.repeats, clock, **runs)
    rates = {
        name: [work / each / 1e9 for each in seconds[name]] for name, (_, work) in products.items()
    }
    best = [max(values) for values in zip(*rates.values(), strict=True)]
    rates["backward"] = [flops / each / 1e9 for each in seconds["backward"]]
    rates["step"] = [flops / each / 1e9 for each in seconds["step"]]
    result = {
        "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
        "tokens_a_step": rows * length,
        "gflop_a_step": flops / 1e9,
        "gflops": {name: statistics.median(values) for name, values in rates.items()},
        "tokens_per_second": rows * length / statistics.median(seconds["step"]),
        "share_of_best_product": ratio(rates["step"], best),
        "share_without_optimizer": ratio(rates["backward"], best),
    }
    if options.sdpa:
        result["times_faster_than_sdpa"] = ratio(seconds["of_sdpa"], seconds["step"])
    return result


def make_denoiser(config: TrainingConfig, vocabulary: int, compiled: bool) -> Denoiser:
    """A random network as it trains: bf16 weights, the block objective."""
    torch.manual_seed(0)
    network = build_network(config.model, vocabulary, config.data.max_seq_length, SPECIAL)
    network.bfloat16()
    denoiser = Denoiser(network, "block", BLOCK, SPECIAL["<|mask|>"], [0, 1, 2, 3])
    if compiled:
        denoiser.compile_layers()
    return denoiser.train()


def draw_batch(config: TrainingConfig, vocabulary: int) -> dict[str, Tensor]:
    """Rows of random tokens, each one segment, corrupted as the first step is."""
    rows, length = config.run.batch_size, config.data.max_seq_length
    maskable = torch.ones(rows, length, dtype=torch.bool)
    masked, weights = draw_corruption(maskable, BLOCK, "exact_count", 0, 0, 0, rows)
    return {
        "tokens": torch.randint(len(SPECIAL), vocabulary, (rows, length)),
        "segments": torch.ones(rows, length, dtype=torch.long),
        "maskable": maskable,
        "masked": masked,
        "weights": weights,
    }


def candidates(
    network: nn.Module, positions: int, quick: bool
) -> dict[str, tuple[Callable[[], object], float]]:
    """A large product, and each of the model's own shapes at `positions`, with its operations."""
    size = 128 if quick else 2048
    found = {"large": (2 * size, size, size)}
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            shape = (positions, layer.in_features, layer.out_features)
            found[f"{shape[0]}x{shape[1]}x{shape[2]}"] = shape
    return {name: product(*shape) for name, shape in found.items()}


def product(rows: int, inputs: int, outputs: int) -> tuple[Callable[[], Tensor], float]:
    """A bf16 product of this shape, and its operations."""
    left = torch.randn(rows, inputs, dtype=torch.bfloat16)
    right = torch.randn(outputs, inputs, dtype=torch.bfloat16)
    return lambda: left @ right.T, 2.0 * rows * inputs * outputs


def gradients(denoiser: Denoiser, batch: dict[str, Tensor]) -> None:
    """Forward and backward."""
    loss = denoiser(**batch) / batch["maskable"].sum()
    loss.backward()
    for parameter in denoiser.parameters():
        parameter.grad = None


def step_of(
    denoiser: Denoiser, config: TrainingConfig, batch: dict[str, Tensor]
) -> Callable[[], None]:
    """A whole step: forward, backward, clipping, optimiser with masters and average."""
    run = replace(config.run, learning_rate=1e-5, muon_learning_rate=1e-5)
    optimizer = build_optimizer(denoiser, run)

    def step() -> None:
        loss = denoiser(**batch) / batch["maskable"].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), run.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def with_sdpa(step: Callable[[], None]) -> Callable[[], None]:
    """The same step, its attention what it is where plain products are not faster."""

    def run() -> None:
        with mock.patch.object(attention, "by_tiles", return_value=False):
            step()

    return run


if __name__ == "__main__":
    main()
