"""A network that transformers made, taken apart: its layers, their matrices, its output head."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from diffusiongpt.engine.architectures import ARCHITECTURES, Architecture


def facts_of(network: PreTrainedModel) -> Architecture:
    """What the table says of a network's class; of others, what most classes have."""
    return ARCHITECTURES.get(type(network).__name__, Architecture())


def layers_of(network: PreTrainedModel) -> nn.ModuleList:
    """The layers of a network."""
    layers: nn.ModuleList = network.base_model.get_submodule(facts_of(network).layers)  # type: ignore[assignment]
    return layers


def matrices_of(module: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """The matrices of linear layers by name; GPT-2's are turned around and called Conv1D."""
    for name, each in module.named_modules():
        if isinstance(each, (nn.Linear, Conv1D)):
            yield name, each


def size_of(matrix: nn.Linear | Conv1D) -> int:
    """How many weights a matrix has, as which type they may be kept."""
    if isinstance(matrix, nn.Linear):
        return matrix.in_features * matrix.out_features
    return int(matrix.nx * matrix.nf)


def number_layers(network: PreTrainedModel) -> None:
    """Let every attention know which layer it is in, as most classes do by themselves."""
    for index, layer in enumerate(layers_of(network)):
        for module in layer.modules():
            if hasattr(module, "is_causal") and not hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]


def output_head(network: PreTrainedModel) -> list[nn.Module]:
    """What leads from the last hidden states (R, H) to logits (R, V), the output embedding last."""
    return [_step_of_head(network, each) for each in facts_of(network).head]


def _step_of_head(network: PreTrainedModel, name: str) -> nn.Module:
    if name == "gelu":
        return nn.GELU()
    if name[0] in "*/":
        factor = float(getattr(network.config, name[1:]))
        return _Scale(factor if name[0] == "*" else 1.0 / factor)
    return network.get_submodule(name)


class _Scale(nn.Module):
    """Logits times a factor: hidden states are as good as logits, if nothing is added after."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self._factor
