"""Fused and separate weights of a checkpoint become the native class's, and nothing is lost."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import Glm4MoeConfig

from diffusiongpt.engine.conversion import convert_weights
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.families import FAMILIES

MIXTURE = FAMILIES["llada2"]
EXPERTS = "model.layers.1.mlp.experts"


def small_config() -> Glm4MoeConfig:
    return Glm4MoeConfig(
        hidden_size=6, num_attention_heads=2, num_key_value_heads=1, head_dim=3, num_hidden_layers=2
    )


def test_renames_apply_in_order_to_every_name() -> None:
    spec = dataclasses.replace(FAMILIES["modernbert"], rename=(("^a", "b"), ("b$", "c")))
    weight = torch.ones(1)
    assert list(convert_weights({"ab": weight, "b": weight}, spec, small_config())) == ["bc", "c"]


def test_fused_rows_are_queries_then_keys_then_values() -> None:
    fused = torch.arange(12.0)[:, None].expand(12, 6)
    key = "model.layers.0.attention.query_key_value.weight"
    weights = convert_weights({key: fused}, MIXTURE, small_config())
    rows = {name.split(".")[-2]: tensor[:, 0].tolist() for name, tensor in weights.items()}
    assert rows == {"q_proj": [0, 1, 2, 3, 4, 5], "k_proj": [6, 7, 8], "v_proj": [9, 10, 11]}


def test_fused_rows_that_do_not_add_up_are_left_for_the_loader_to_refuse() -> None:
    key = "model.layers.0.attention.query_key_value.weight"
    weights = convert_weights({key: torch.zeros(11, 6)}, MIXTURE, small_config())
    assert list(weights) == ["model.layers.0.self_attn.qkv_proj.weight"]


def test_experts_are_stacked_by_number_with_gate_above_up() -> None:
    numbers = range(11)
    shapes = {"gate": (2, 3), "up": (2, 3), "down": (3, 2)}
    weights = {
        f"{EXPERTS}.{expert}.{name}_proj.weight": torch.full(shape, expert + offset)
        for expert in sorted(numbers, key=str)
        for (name, shape), offset in zip(shapes.items(), (0.0, 0.25, 0.5), strict=True)
    }
    stacked = convert_weights(weights, MIXTURE, small_config())
    assert set(stacked) == {f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"}
    gate_up, down = stacked[f"{EXPERTS}.gate_up_proj"], stacked[f"{EXPERTS}.down_proj"]
    assert (gate_up.shape, down.shape) == ((11, 4, 3), (11, 3, 2))
    assert gate_up[:, 0, 0].tolist() == [float(expert) for expert in numbers]
    assert gate_up[:, 2, 0].tolist() == [expert + 0.25 for expert in numbers]
    assert down[:, 0, 0].tolist() == [expert + 0.5 for expert in numbers]


@pytest.mark.parametrize("names", [["gate"], ["gate", "up"], ["down"]])
def test_incomplete_experts_are_refused(names: list[str]) -> None:
    weights = {f"{EXPERTS}.0.{name}_proj.weight": torch.zeros(2, 2) for name in names}
    with pytest.raises(LoadError, match=r"the experts of .* are incomplete"):
        convert_weights(weights, MIXTURE, small_config())
