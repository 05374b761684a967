"""Operations of a training step, counted product by product: 2 for each multiply-and-add.

Only matrix products count (norms, activations, softmax, the optimiser do not), and each one as
often as a step needs it: forward, gradient of its input, gradient of its weights where they are
trained. What gradient checkpointing computes again is not counted.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from diffusiongpt.engine.native import layers_of, matrices_of
from diffusiongpt.training.attention import by_tiles, chunk_length
from diffusiongpt.training.backbones import window_of
from diffusiongpt.training.config import TrainingConfig
from diffusiongpt.training.denoiser import Denoiser
from diffusiongpt.training.tiles import tile_pairs


def step_flops(
    denoiser: Denoiser, block_lengths: tuple[int, ...], rows: int, length: int, headed: float
) -> float:
    """Operations of forward and backward over `rows` rows of `length` positions.

    With P positions in the layers (`rows` times `length`, twice that with two streams), I x O
    matrices, K pairs of a query and a key in a layer, H heads of size S:

        sum over the layers' matrices of 2 P I O (2 + trained)
        + sum over the head's matrices of 2 `headed` I O (2 + trained)
        + sum over the layers of 3 * 4 K H S

    K is what attention computes, and hidden pairs that are computed count. Where it is made of
    tiles, the pairs of `tile_pairs`; elsewhere L^2 in one stream, 3 L^2 in two, and in chunks of C
    in sliding layers 2 L C and 5 L C. P of the last layer's feed-forward matrices is of one stream
    where the denoiser narrows that layer.

    Args:
        block_lengths: those that take turns, as in `TrainingConfig`; 0 is the whole canvas in
            one stream, -1 a next-token model.
        headed: how many positions the head runs on.
    """
    network = denoiser.network
    inside = {id(module) for module in network.base_model.modules()}
    linear = [matrix for _, matrix in matrices_of(network)]
    layers = sum(_products(module) for module in linear if id(module) in inside)
    head = sum(_products(module) for module in linear if id(module) not in inside)
    last = _last_feed_forward(network) if denoiser.narrows else 0.0
    streams = sum(2 if block > 0 else 1 for block in block_lengths) / len(block_lengths)
    pairs = sum(pairs_of(network, block, length) for block in block_lengths) / len(block_lengths)
    shape = network.config
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    attention: float = 12.0 * pairs * shape.num_attention_heads * size
    in_layers = rows * length * (streams * (layers - last) + last)
    return in_layers + headed * head + rows * attention


def flops_per_token(denoiser: Denoiser, config: TrainingConfig) -> float:
    """Operations of a step per token of text: the head sees half of the positions on average.

    All of them with `causal` and in the edit stage.
    """
    length, diffusion = config.data.max_seq_length, config.diffusion
    everywhere = diffusion.objective == "causal" or diffusion.edit_stage_start is not None
    headed = length * (1.0 if everywhere else 0.5)
    return step_flops(denoiser, blocks_of(config), 1, length, headed) / length


def blocks_of(config: TrainingConfig) -> tuple[int, ...]:
    """The block lengths of a configuration as `step_flops` takes them."""
    other = {"masked": (0,), "causal": (-1,)}
    return other.get(config.diffusion.objective, config.diffusion.block_lengths)


def pairs_of(network: PreTrainedModel, block_length: int, length: int) -> float:
    """Pairs of a query and a key that attention computes for a row, summed over the layers."""
    kinds = getattr(network.config, "layer_types", None)
    kinds = kinds or ["full_attention"] * network.config.num_hidden_layers
    window = window_of(network)
    tiled = by_tiles(next(network.parameters()).device)
    total = 0.0
    for kind in kinds:
        reach = window if kind == "sliding_attention" else None
        if tiled:
            total += tile_pairs(length, abs(block_length), reach, block_length > 0)
        else:
            total += _dense_pairs(length, block_length, reach)
    return total


def _dense_pairs(length: int, block_length: int, window: int | None) -> int:
    chunk = None
    if window is not None and block_length:
        chunk = chunk_length(length, abs(block_length), window)
    if chunk is not None:
        return (5 if block_length > 0 else 2) * length * chunk
    return (3 if block_length > 0 else 1) * length * length


def _last_feed_forward(network: PreTrainedModel) -> float:
    """Operations of the last layer's feed-forward matrices for one position."""
    feed_forward = layers_of(network)[-1].get_submodule("mlp")
    return sum(_products(matrix) for _, matrix in matrices_of(feed_forward))


def _products(layer: nn.Module) -> float:
    """Operations of a matrix for one position: forward, its input's gradient, its own."""
    weight = layer.get_parameter("weight")
    return 2.0 * weight.numel() * (3 if weight.requires_grad else 2)
