"""A checkpoint's weights under the names and in the shapes of the class that transformers ships."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.families import FamilySpec

_FUSED = re.compile(r"(.*\.self_attn)\.qkv_proj\.weight")
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def convert_weights(
    weights: Mapping[str, Tensor], spec: FamilySpec, config: PreTrainedConfig
) -> dict[str, Tensor]:
    """Rename as the family says, split fused projections, and stack experts.

    Args:
        weights: tensors by the checkpoint's names.
        config: of the native class.

    Raises:
        LoadError: the experts of a layer do not fit each other.
    """
    renamed = {_rename(key, spec): tensor for key, tensor in weights.items()}
    if not spec.is_mixture:
        return renamed
    return _stack_experts(_split_projections(renamed, config))


def _rename(key: str, spec: FamilySpec) -> str:
    for pattern, replacement in spec.rename:
        key = re.sub(pattern, replacement, key)
    return key


def _split_projections(
    weights: Mapping[str, Tensor], config: PreTrainedConfig
) -> dict[str, Tensor]:
    """Rows [queries | keys | values] of a qkv_proj to q_proj, k_proj and v_proj."""
    size = config.head_dim
    rows = [config.num_attention_heads * size, *[config.num_key_value_heads * size] * 2]
    split: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        fused = _FUSED.fullmatch(key)
        # Rows that do not add up keep their name and are refused as unexpected.
        if fused is None or tensor.shape[0] != sum(rows):
            split[key] = tensor
            continue
        for name, part in zip("qkv", tensor.split_with_sizes(rows), strict=True):
            split[f"{fused[1]}.{name}_proj.weight"] = part
    return split


def _stack_experts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts one by one to (E, 2I, H) gate and up, and (E, H, I) down, of all of a layer."""
    stacked: dict[str, Tensor] = {}
    experts: dict[str, dict[tuple[str, int], Tensor]] = {}
    for key, tensor in weights.items():
        expert = _EXPERT.fullmatch(key)
        if expert is None:
            stacked[key] = tensor
        else:
            experts.setdefault(expert[1], {})[expert[3], int(expert[2])] = tensor
    for layer, parts in experts.items():
        try:
            gates, ups, downs = (
                torch.stack([parts[each] for each in sorted(parts) if each[0] == name])
                for name in ("gate", "up", "down")
            )
            stacked[f"{layer}.gate_up_proj"] = torch.cat([gates, ups], dim=1)
        except RuntimeError as error:
            raise LoadError(f"the experts of {layer} are incomplete or differ in shape") from error
        stacked[f"{layer}.down_proj"] = downs
    return stacked
