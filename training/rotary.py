"""Rotary positions piece by piece, so that what is computed in float32 stays in a core's cache.

transformers' ModernBERT widens whole tensors for each of its dozen operations, which are a fifth of
an eager step on a CPU. A compiler fuses them, so compiled layers keep that. B rows, T positions,
H heads of size S.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import ModernBertForMaskedLM, PreTrainedModel

from diffusiongpt.training.attention import IMPLEMENTATION, training_attention

# Numbers in a piece.
PIECE = 1 << 17


def rotate_in_pieces(network: PreTrainedModel) -> None:
    """Let a ModernBERT's attention use `rotate` on CPUs, where nothing compiles it.

    Other networks are left as they are: they rotate in the weights' precision.
    """
    if isinstance(network, ModernBertForMaskedLM):
        for layer in network.model.layers:
            layer.attn.forward = partial(_attend, layer.attn, layer.attn.forward)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned by their positions' angles, and values as they are, (B, H, T, S).

    The rule of RoFormer (arXiv 2104.09864) with the halves of a head as pairs, in float32.

    Args:
        qkv: (B, T, 3, H, S).
        cos, sin: (1, T, S) or (B, T, S), both halves alike.
    """
    turned: tuple[Tensor, Tensor, Tensor] = _Rotation.apply(qkv, cos, sin)  # type: ignore[no-untyped-call]
    return turned


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        turned = qkv.new_empty(2, *qkv[:, :, 0].shape)
        for x, out in zip(qkv.unbind(2)[:2], turned, strict=True):
            _turn(x, cos, sin, out)
        query, key = turned.transpose(2, 3)
        return query, key, qkv[:, :, 2].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_query: Tensor, of_key: Tensor, of_value: Tensor
    ) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        rows, heads, length, size = of_query.shape
        grad = of_query.new_empty(rows, length, 3, heads, size)
        # A turn's transpose is the turn back.
        _turn(of_query.transpose(1, 2), cos, -sin, grad[:, :, 0])
        _turn(of_key.transpose(1, 2), cos, -sin, grad[:, :, 1])
        grad[:, :, 2] = of_value.transpose(1, 2)
        return grad, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """(x1 cos - x2 sin, x2 cos + x1 sin) of the halves x1 and x2 of each head (B, T, H, S)."""
    half, length = x.shape[3] // 2, max(1, PIECE // x[:, 0].numel())
    precision = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(precision)[:, :, None], sin.to(precision)[:, :, None]
    for start in range(0, x.shape[1], length):
        part = slice(start, start + length)
        wide, angle = x[:, part].to(precision), sin[:, part]
        turned = wide * cos[:, part]
        turned[..., :half].addcmul_(wide[..., half:], angle[..., :half], value=-1)
        turned[..., half:].addcmul_(wide[..., :half], angle[..., half:])
        out[:, part] = turned


def _attend(
    attention: Any,
    whole: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """A ModernBERT's attention with our rotation; its own where ours is of no use."""
    ours = attention.config._attn_implementation == IMPLEMENTATION
    if torch.compiler.is_compiling() or hidden_states.device.type != "cpu" or not ours:
        stock: tuple[Tensor, Tensor | None] = whole(
            hidden_states, position_embeddings, attention_mask, **kwargs
        )
        return stock
    shape = hidden_states.shape[:-1]
    qkv = attention.Wqkv(hidden_states).view(*shape, 3, -1, attention.head_dim)
    query, key, value = rotate(qkv, *position_embeddings)
    out, weights = training_attention(
        attention, query, key, value, attention_mask, attention.head_dim**-0.5
    )
    return attention.out_drop(attention.Wo(out.reshape(*shape, -1))), weights
