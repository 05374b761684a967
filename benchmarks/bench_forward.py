"""The packed forward in bf16: its share of this machine's own bf16 matrix product rate.

Two ceilings are measured in turn with the forward: one large product, and the products of the
model's own linear layers at the same number of tokens, which is what the forward could reach if
attention, norms and activations took no time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.model import LoadedModel

from measure import in_turn, parse_arguments, ratio, report, write_random_model

BASE = {  # ModernBERT-base
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "local_attention": 128,
}


def main() -> None:
    """Measure and report, for the bundled shape and for ModernBERT-base's."""
    options = parse_arguments(__doc__, segments=16, length=256)
    shapes: dict[str, dict[str, int]] = {"bundled": {}}
    if not options.quick:
        shapes["modernbert_base"] = BASE
    lengths = (options.length,) * options.segments
    if options.quick:
        lengths = (32,) * 4
    result = {name: measure_shape(options, lengths, shape) for name, shape in shapes.items()}
    report(options, "forward", ">= 60 % of the matrix product rate", result)


def measure_shape(options: Any, lengths: tuple[int, ...], shape: dict[str, int]) -> dict[str, Any]:
    """Rates of the forward and of both ceilings, in Gflop/s."""
    model = load_model(
        write_random_model(options.quick, **shape), dtype="bfloat16", device=options.device
    )
    tokens = sum(lengths)
    ids = torch.randint(5, model.vocab_size, (1, tokens), device=model.device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(model.device)
    large, large_flops = large_product(options.quick, options.device)
    own, own_flops = own_products(model, tokens)
    flops = own_flops + attention_flops(model, lengths)
    seconds = in_turn(
        options.repeats,
        large=large,
        own=own,
        forward=lambda: model.backbone(ids, positions, model.plan(*lengths)),
    )
    rates = {
        "large": [large_flops / each / 1e9 for each in seconds["large"]],
        "own": [own_flops / each / 1e9 for each in seconds["own"]],
        "forward": [flops / each / 1e9 for each in seconds["forward"]],
    }
    return {
        "tokens": tokens,
        "gflops": {name: statistics.median(values) for name, values in rates.items()},
        "tokens_per_second": tokens / statistics.median(seconds["forward"]),
        "share_of_large_product": ratio(rates["forward"], rates["large"]),
        "share_of_own_products": ratio(rates["forward"], rates["own"]),
    }


def large_product(quick: bool, device: str) -> tuple[Callable[[], Tensor], float]:
    """One product with a good shape, and its flops."""
    size = 128 if quick else 2048
    left = torch.randn(2 * size, size, dtype=torch.bfloat16, device=device)
    right = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    return lambda: left @ right.T, 2.0 * 2 * size * size * size


def own_products(model: LoadedModel, tokens: int) -> tuple[Callable[[], None], float]:
    """Every linear layer of the backbone once at `tokens` tokens, and their flops."""
    network = model._network.base_model
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    inputs = {
        n: torch.randn(tokens, n, dtype=model.dtype, device=model.device)
        for n in {m.in_features for m in layers}
    }

    @torch.inference_mode()
    def run() -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    return run, 2.0 * tokens * sum(layer.weight.numel() for layer in layers)


def attention_flops(model: LoadedModel, lengths: tuple[int, ...]) -> float:
    """Scores and their use: 4 L K H a layer, K the keys that a query sees."""
    config = model.config
    total = 0.0
    for kind in config.layer_types:
        window = None if kind == "full_attention" else config.sliding_window
        for length in lengths:
            keys = length if window is None else min(length, 2 * window - 1)
            total += 4.0 * length * keys * config.hidden_size
    return total


if __name__ == "__main__":
    main()
