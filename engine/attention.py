"""Attention over packed tokens: many segments in one row, none of which sees another.

One attention function and one mask function are registered with transformers under the name
`PACKED_ATTENTION`. A model built with `attn_implementation=PACKED_ATTENTION` keeps its own
modelling code; who sees whom comes from the `AttentionPlan` that travels to every layer as the
keyword argument `attention_plan`. Whatever a kernel will need to know of a batch (cache rows,
cumulative lengths) is a field of the plan, so that layers and callers need not change with it.

On the CPU each run of equally long neighbours is one call of PyTorch's SDPA, which gives bit
for bit what a call per segment gives.

Legend: T packed tokens, L tokens of a segment, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED_ATTENTION = "diffusiongpt_packed"

# Masks are L * L: 64 of them at 1024 tokens in float32 are 256 MiB.
_CACHED_MASKS = 64


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Who sees whom in a row of packed tokens.

    Attributes:
        lengths: tokens of each segment in the order of the row; their sum is T.
        block_length: block-causal attention: position i sees j where block(j) <= block(i),
            positions counted from the segment's start. None: a segment sees all of itself.
    """

    lengths: tuple[int, ...]
    block_length: int | None = None

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths must be at least one length >= 1, got {self.lengths}")
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")

    @cached_property
    def num_tokens(self) -> int:
        """T, the tokens of all segments."""
        return sum(self.lengths)

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Equally long neighbours as (count, length): lengths 5, 5, 3 are (2, 5), (1, 3)."""
        return tuple((len(list(run)), length) for length, run in groupby(self.lengths))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_plan: AttentionPlan,
    scaling: float,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer.

    Args:
        query: (1, H, T, D), rotated. key, value: the same with as many or fewer heads.
        attention_mask: None; the plan takes its place.
        attention_plan: the segments of the row.
        scaling: factor of the scores.
        sliding_window: of a local layer: i sees j where |i - j| <= sliding_window - 1.
        dropout: must be 0.

    Returns:
        (1, T, H, D) and no attention weights.

    Raises:
        ValueError: the row is not what the plan says, or dropout is on.
    """
    if dropout:
        raise ValueError(f"packed attention is for inference, got dropout={dropout}")
    if query.shape[0] != 1 or query.shape[2] != attention_plan.num_tokens:
        raise ValueError(
            f"the plan has one row of {attention_plan.num_tokens} tokens, "
            f"got queries of shape {tuple(query.shape)}"
        )
    outputs = []
    for start, count, length in _spans(attention_plan):
        tokens = slice(start, start + count * length)
        output = F.scaled_dot_product_attention(
            _by_segment(query[0, :, tokens], length),
            _by_segment(key[0, :, tokens], length),
            _by_segment(value[0, :, tokens], length),
            attn_mask=_mask(
                length, sliding_window, attention_plan.block_length, query.dtype, query.device
            ),
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # (count * L, H, D)
    return torch.cat(outputs)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask function that transformers calls: the plan says who sees whom."""


def _spans(plan: AttentionPlan) -> Iterator[tuple[int, int, int]]:
    """Each run of equally long segments as (first token, segments, length)."""
    start = 0
    for count, length in plan.runs:
        yield start, count, length
        start += count * length


def _by_segment(heads: Tensor, length: int) -> Tensor:
    """(H, n * L, D) to (n, H, L, D), without a copy."""
    return heads.view(heads.shape[0], -1, length, heads.shape[2]).transpose(0, 1)


def _mask(
    length: int,
    sliding_window: int | None,
    block_length: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """The additive mask (L, L) of a segment, or None where it would exclude nothing.

    The arguments are reduced to None where they exclude nothing before the cache is asked, so
    that short segments never build a mask.
    """
    if sliding_window is not None and length <= sliding_window:
        sliding_window = None
    if block_length is not None and length <= block_length:
        block_length = None
    if sliding_window is None and block_length is None:
        return None
    return _build_mask(length, sliding_window, block_length, dtype, device)


@lru_cache(maxsize=_CACHED_MASKS)
def _build_mask(
    length: int,
    sliding_window: int | None,
    block_length: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    position = torch.arange(length, device=device)
    visible = torch.ones(length, length, dtype=torch.bool, device=device)
    if sliding_window is not None:
        visible &= (position[:, None] - position).abs() < sliding_window
    if block_length is not None:
        block = position // block_length
        visible &= block <= block[:, None]
    # Additive in the queries' dtype: SDPA would turn a boolean mask into that in every layer.
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(
        ~visible, -torch.inf
    )


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)
