"""The attention function that transformers' models call, over packed tokens: many segments in
one row, none of which sees another.

One attention function and one mask function are registered with transformers under the name
`PACKED_ATTENTION`. A model built with `attn_implementation=PACKED_ATTENTION` keeps its own
modelling code; who sees whom comes from the plan that travels to every layer as the
keyword argument `attention_plan`. Whatever a kernel will need to know of a batch (cache rows,
cumulative lengths) is a field of the plan, so that layers and callers need not change with it.

Legend: T packed tokens, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from diffusiongpt.engine.attention_plan import Plan

PACKED_ATTENTION = "diffusiongpt_packed"
# Keyword arguments that layers hand on and that change no result. Others (soft caps, sinks, biases
# of positions) do.
_HARMLESS = {
    *("deterministic", "encoder_hidden_states", "output_attentions", "output_router_logits"),
    *("past_key_values", "position_ids", "use_cache", "wanted"),
}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_plan: Plan | None = None,
    scaling: float,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer.

    Args:
        query: (1, H, T, D), rotated. key, value: the same with as many or fewer heads.
        attention_mask: None; the plan takes its place.
        attention_plan: the segments of the row; None takes that of `plan_under_way`.
        scaling: factor of the scores.
        sliding_window: of a local layer: i sees j where |i - j| <= sliding_window - 1.
        dropout: must be 0. others: what `check_arguments` lets pass.

    Returns:
        (1, T, H, D) and no attention weights.

    Raises:
        ValueError: the row is not what the plan says, dropout is on, or an argument is not known.
    """
    check_arguments(others)
    if dropout:
        raise ValueError(f"packed attention is for inference, got dropout={dropout}")
    layer = _layer_of(module)
    if attention_plan is None:
        return _attend_under_way(query, key, value, layer, scaling, sliding_window), None
    return attention_plan.attend(query, key, value, layer, scaling, sliding_window), None


def check_arguments(others: Mapping[str, Any]) -> None:
    """Refuse what a layer asks of attention that we would leave out.

    Raises:
        ValueError: a keyword argument that may change the result.
    """
    for name, value in others.items():
        if value is not None and name not in _HARMLESS:
            raise ValueError(f"attention has no {name}, which a layer of this model asks for")


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask function that transformers calls: the plan says who sees whom."""


def _layer_of(module: nn.Module) -> int:
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise ValueError(f"{type(module).__name__} does not say which layer it is")
    return layer


# The plan of the forward under way, for compiled models: an operator takes tensors and numbers.
_plan_under_way: ContextVar[Plan] = ContextVar("attention_plan")


@contextmanager
def plan_under_way(plan: Plan) -> Iterator[None]:
    """Where a compiled model's attention finds its plan."""
    token = _plan_under_way.set(plan)
    try:
        yield
    finally:
        _plan_under_way.reset(token)


@torch.library.custom_op("diffusiongpt::packed_attention", mutates_args=())
def _attend_under_way(
    query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float, window: int | None
) -> Tensor:
    """The plan's attention as one operator of a compiled graph, which does not look into it: its
    tiles follow the batch, so every new mix of lengths would be compiled anew."""
    return _plan_under_way.get().attend(query, key, value, layer, scaling, window)


@_attend_under_way.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)
