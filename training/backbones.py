"""The networks that can be trained: those of transformers that the engine can serve.

ModernBERT takes its masks layer by layer; other classes would build their own, so their masks
travel to the attention function beside its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, ModernBertForMaskedLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from diffusiongpt.engine.architectures import (
    ARCHITECTURES,
    describe_known,
    first_position,
    reason_against,
)
from diffusiongpt.engine.native import facts_of, layers_of, matrices_of, number_layers, output_head
from diffusiongpt.training.attention import IMPLEMENTATION
from diffusiongpt.training.config import ConfigError, ModelConfig


def load_backbone(source: str | Path, attention: str = IMPLEMENTATION) -> PreTrainedModel:
    """A pretrained network in float32: a folder or a hub id.

    Raises:
        ConfigError: no model there, or one that the engine could not serve.
    """
    name = architecture_of(source)
    network: PreTrainedModel = getattr(transformers, name).from_pretrained(
        str(source), attn_implementation=attention, dtype=torch.float32
    )
    if reason := reason_against(network.config):
        raise ConfigError(f"{str(source)!r} is a {name} that cannot be trained: {reason}")
    number_layers(network)
    return network


def architecture_of(source: str | Path) -> str:
    """The class of transformers that a folder or hub id names."""
    try:
        config = AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"there is no model in {str(source)!r}: {reason}") from error
    names = config.architectures or ["nothing"]
    if names[0] not in ARCHITECTURES:
        raise ConfigError(
            f"the architecture of {str(source)!r} must be {describe_known()}, got {names[0]}"
        )
    return str(names[0])


def fit_positions(network: PreTrainedModel, length: int) -> None:
    """Give a network `length` positions; of learned ones the first are kept.

    Raises:
        ConfigError: fewer were learned.
    """
    before = first_position(network.config)
    path = facts_of(network).positions
    if path is not None:
        table: Any = network.base_model.get_submodule(path)
        if table.num_embeddings < before + length:
            raise ConfigError(
                f"data.max_seq_length must be at most {table.num_embeddings - before}, the "
                f"positions that the model of model.init_from has learned, got {length}"
            )
        table.weight = nn.Parameter(table.weight.detach()[: before + length].clone())
        table.num_embeddings = before + length
    network.config.max_position_embeddings = before + length


def takes_layer_masks(network: PreTrainedModel) -> bool:
    """Whether a network takes its masks layer by layer."""
    return isinstance(network, ModernBertForMaskedLM)


def window_of(network: PreTrainedModel) -> int | None:
    """How far to either side sliding layers see; None where there are none."""
    window: int | None = getattr(network.config, "sliding_window", None)
    if window is None or takes_layer_masks(network):
        return window
    return window - 1


def output_embedding(network: PreTrainedModel) -> Any:
    """The matrix from hidden states to logits."""
    find: Callable[[], Any] = network.get_output_embeddings
    return find()


def apply_head(network: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Last hidden states (M, D) to logits (M, V)."""
    for step in output_head(network):
        hidden = step(hidden)
    return hidden


def run_backbone(
    network: PreTrainedModel,
    ids: Tensor,
    masks: dict[str, Any],
    positions: Tensor,
    wanted: slice | None = None,
) -> Tensor:
    """Last hidden states (B, T, D) of ids (B, T) under ready masks, one per kind of layer.

    Of the `wanted` positions alone, if a network's last layer can be told of them.
    """
    others: dict[str, Any] = {} if wanted is None else {"wanted": wanted}
    if takes_layer_masks(network):
        others["attention_mask"] = masks
    else:
        others |= {"use_cache": False, "diffusion_masks": masks}
    positions = positions + first_position(network.config)
    output = network.base_model(input_ids=ids, position_ids=positions, **others)
    hidden: Tensor = output.last_hidden_state
    return hidden


def add_adapters(network: PreTrainedModel, config: ModelConfig) -> None:
    """Freeze the network and put LoRA adapters (arXiv 2106.09685) on the layers' matrices."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            f"model.lora_rank={config.lora_rank} needs peft: pip install diffusiongpt[lora]"
        ) from error
    inject_adapter_in_model(
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.dropout,
            target_modules=_names_of_matrices(network),
            fan_in_fan_out=_are_turned_around(network),
        ),
        network,
    )


def _names_of_matrices(network: PreTrainedModel) -> list[str]:
    """The matrices of the layers, under the names that the whole network has for them."""
    inside = {id(matrix) for _, matrix in matrices_of(layers_of(network))}
    return [name for name, matrix in matrices_of(network) if id(matrix) in inside]


def _are_turned_around(network: PreTrainedModel) -> bool:
    return any(isinstance(matrix, Conv1D) for _, matrix in matrices_of(layers_of(network)))


def merge_adapters(network: PreTrainedModel) -> None:
    """Add the adapters to the matrices that they adapt, in place, and take them away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.get_base_layer())


def has_adapters(network: nn.Module) -> bool:
    """Whether `add_adapters` was called on a network."""
    return any("lora_A" in name for name, _ in network.named_parameters())
