"""Weights in 8 or 4 bits, by torchao, which is imported only when somebody asks for it.

Weight-only: activations stay as they are, and a weight is expanded again where it is used. What is
saved is memory, a half or three quarters of the layers' weights; time is not, because denoising
multiplies many tokens at once. The embeddings and the output head stay as they are, since every
commit is decided there.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from diffusiongpt.engine.config import QuantizeKind
from diffusiongpt.engine.errors import LoadError

# Weights of a row that share a scale: the smallest group that every kernel takes.
INT4_GROUP = 32


def quantize_layers(layers: nn.Module, kind: QuantizeKind) -> None:
    """Replace the weights of all linear layers within `layers`, in place.

    Raises:
        LoadError: torchao is missing or has no such kernel, or a layer's shape does not fit.
    """
    linear = [each for each in layers.modules() if isinstance(each, nn.Linear)]
    if not linear:
        raise LoadError(f"quantize={kind} found no linear layer to work on")
    if any(each.ndim > 2 for each in layers.parameters()):
        raise LoadError(
            f"quantize={kind} works on linear layers, and most weights of this model are fused "
            "experts, which are none"
        )
    if kind == "int4":
        for each in linear:
            if each.in_features % INT4_GROUP:
                raise LoadError(
                    f"quantize=int4 needs layers whose inputs are multiples of {INT4_GROUP}, "
                    f"got one with {each.in_features}"
                )
    config = _config_of(kind, linear[0].weight.device)
    try:
        import_module("torchao.quantization").quantize_(layers, config)
    except Exception as error:
        raise LoadError(_describe(kind, error)) from error


def _config_of(kind: QuantizeKind, device: torch.device) -> Any:
    """torchao's description of what to do; its settings for the compiler are left alone."""
    try:
        if kind == "int8":
            module = import_module("torchao.quantization")
            return module.Int8WeightOnlyConfig(set_inductor_config=False)
        if device.type == "cpu":
            module = import_module("torchao.prototype.quantization.int4")
            return module.PrototypeInt4WeightOnlyConfig(
                group_size=INT4_GROUP, set_inductor_config=False
            )
        module = import_module("torchao.quantization")
        return module.Int4WeightOnlyConfig(
            group_size=INT4_GROUP,
            int4_packing_format="tile_packed_to_4d",
            set_inductor_config=False,
        )
    except (ImportError, AttributeError, TypeError) as error:
        raise LoadError(_describe(kind, error)) from error


def _describe(kind: QuantizeKind, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "torchao":
        return (
            f"quantize={kind} needs the package torchao: pip install 'diffusiongpt[quantization]'"
        )
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"the installed torchao cannot do quantize={kind} here: {type(error).__name__}: {reason}"
