"""Attention for training: the masks of an objective, and one function that runs them without waste.

The block objective feeds `[x_t ; x_0]`; `tiles.may_see` says who sees whom. On CPUs attention is
plain products, tile by tile (`products.py`); elsewhere it is SDPA: the quadrant clean -> noisy is
always hidden, so it is never computed, and sliding layers are computed in chunks of the window.
B rows, L positions, C chunk, N = L / C chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from diffusiongpt.engine.attention import check_arguments
from diffusiongpt.training.products import attend_tiles
from diffusiongpt.training.tiles import TilePlan, additive, may_see, plan_tiles

IMPLEMENTATION = "diffusion_training"


class StreamMasks(NamedTuple):
    """Additive masks of one layer type; chunked ones have a chunk dimension after the head's."""

    clean: Tensor  # (B, 1, L, L) or (B, 1, N, C, 2C)
    noisy: Tensor | None  # (B, 1, L, 2L) or (B, 1, N, C, 3C); None when only x_0 is fed


def by_tiles(device: torch.device) -> bool:
    """Whether attention is made of plain products there."""
    return device.type == "cpu"


def layer_masks(
    segments: Tensor, block_length: int, window: int | None, noisy: bool, dtype: torch.dtype
) -> dict[str, Any]:
    """What `training_attention` takes as the mask of each kind of layer, on the segments' device.

    Args:
        segments: (B, L).
        block_length: 0 for the whole canvas in one stream.
        window: of sliding layers; None where there are none.
        noisy: whether x_t is fed beside x_0.
    """
    if by_tiles(segments.device):
        windows = {"full_attention": None, "sliding_attention": window}
        return {
            kind: plan_tiles(segments, block_length, reach, noisy, dtype)
            for kind, reach in windows.items()
            if kind == "full_attention" or reach is not None
        }
    if block_length == 0:
        return dict(bidirectional_masks(segments, window, dtype))
    return dict(block_masks(segments, block_length, window, noisy, dtype))


def dense_masks(
    segments: Tensor, block_length: int, window: int | None, noisy: bool, dtype: torch.dtype
) -> StreamMasks:
    """The masks of a layer that is computed at once."""
    length = segments.shape[1]
    clean = torch.arange(length, device=segments.device)
    if not noisy:
        allowed = may_see(segments, clean, clean, block_length, window, False)
        return StreamMasks(additive(allowed, dtype)[:, None], None)
    both = torch.cat([clean + length, clean])
    of_clean = may_see(segments, clean + length, clean + length, block_length, window, True)
    of_noisy = may_see(segments, clean, both, block_length, window, True)
    return StreamMasks(additive(of_clean, dtype)[:, None], additive(of_noisy, dtype)[:, None])


def block_masks(
    segments: Tensor, block_length: int, window: int | None, noisy: bool, dtype: torch.dtype
) -> dict[str, StreamMasks]:
    """The masks of a network, one entry per kind of layer; `window` None: none is sliding."""
    full = dense_masks(segments, block_length, None, noisy, dtype)
    if window is None:
        return {"full_attention": full}
    chunk = chunk_length(segments.shape[1], block_length, window)
    if chunk is None:
        sliding = dense_masks(segments, block_length, window, noisy, dtype)
    else:
        sliding = _chunked_masks(segments, block_length, window, chunk, noisy, dtype)
    return {"full_attention": full, "sliding_attention": sliding}


def bidirectional_masks(
    segments: Tensor, window: int | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Full-canvas masks (B, 1, L, L): a segment sees itself, sliding layers within the window."""
    position = torch.arange(segments.shape[1], device=segments.device)
    windows = {"full_attention": None, "sliding_attention": window}
    return {
        kind: additive(may_see(segments, position, position, 0, reach, False), dtype)[:, None]
        for kind, reach in windows.items()
        if kind == "full_attention" or reach is not None
    }


def chunk_length(length: int, block_length: int, window: int) -> int | None:
    """The shortest chunk that holds the window and whole blocks, if a row is several of them."""
    chunk = -(-window // block_length) * block_length
    return chunk if length % chunk == 0 and length // chunk > 1 else None


def _chunked_masks(
    segments: Tensor, block_length: int, window: int, chunk: int, noisy: bool, dtype: torch.dtype
) -> StreamMasks:
    """Masks of chunks of C queries over the 2C clean keys that end with them (and C noisy keys)."""
    rows, length = segments.shape
    query = torch.arange(chunk, device=segments.device) + chunk
    key = torch.arange(2 * chunk, device=segments.device)
    near = (query[:, None] - key[None, :]).abs() <= window  # (C, 2C)
    block_of_query, block_of_key = query // block_length, key // block_length
    own = segments.view(rows, 1, length // chunk, chunk)  # (B, 1, N, C)
    before = F.pad(own[:, :, :-1], (0, 0, 1, 0), value=-1)
    keys = torch.cat([before, own], dim=-1)  # (B, 1, N, 2C)
    same = (own[..., :, None] == keys[..., None, :]) & near  # (B, 1, N, C, 2C)
    clean = same & (block_of_key[None, :] <= block_of_query[:, None])
    if not noisy:
        return StreamMasks(additive(clean, dtype), None)
    earlier = same & (block_of_key[None, :] < block_of_query[:, None])
    inside = same[..., chunk:] & (block_of_key[None, chunk:] == block_of_query[:, None])
    return StreamMasks(
        additive(clean, dtype), additive(torch.cat([earlier, inside], dim=-1), dtype)
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """SDPA of every chunk as a row of its own: (B, H, N, C, D) over (B, H, N, K, D) keys."""
    rows, heads, chunks, length, size = query.shape

    def flat(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(rows * chunks, heads, -1, size)

    out = F.scaled_dot_product_attention(
        flat(query), flat(key), flat(value), mask.flatten(0, 2)[:, None], scale=scaling
    )
    return out.view(rows, chunks, heads, length, size).transpose(1, 2)


def _with_previous_chunk(x: Tensor) -> Tensor:
    """(B, H, N, C, D) -> (B, H, N, 2C, D): each chunk after the one before it."""
    return torch.cat([F.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)), x], dim=3)


def _stream_attention(
    noisy: tuple[Tensor, Tensor, Tensor] | None,
    clean: tuple[Tensor, Tensor, Tensor],
    masks: StreamMasks,
    scaling: float,
) -> Tensor:
    """Attention of both streams, (B, H, 2L, D), or of the clean one alone, (B, H, L, D)."""
    query, key, value = clean
    shape = query.shape
    if masks.clean.dim() == 5:
        chunk = masks.clean.shape[3]
        cut = (*shape[:2], shape[2] // chunk, chunk, shape[3])
        query = query.reshape(cut)
        key, value = (
            _with_previous_chunk(key.reshape(cut)),
            _with_previous_chunk(value.reshape(cut)),
        )
        out = _attend(query, key, value, masks.clean, scaling).reshape(shape)
        if noisy is None or masks.noisy is None:
            return out
        noisy_query, noisy_key, noisy_value = (x.reshape(cut) for x in noisy)
        key = torch.cat([key, noisy_key], dim=3)
        value = torch.cat([value, noisy_value], dim=3)
        noisy_out = _attend(noisy_query, key, value, masks.noisy, scaling).reshape(shape)
        return torch.cat([noisy_out, out], dim=2)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=masks.clean, scale=scaling)
    if noisy is None or masks.noisy is None:
        return out
    key, value = torch.cat([key, noisy[1]], dim=2), torch.cat([value, noisy[2]], dim=2)
    noisy_out = F.scaled_dot_product_attention(
        noisy[0], key, value, attn_mask=masks.noisy, scale=scaling
    )
    return torch.cat([noisy_out, out], dim=2)


def training_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float,
    sliding_window: int | None = None,
    diffusion_masks: dict[str, Any] | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function transformers calls: (B, H, T, D) in, (B, T, H, D) out.

    ModernBERT gets the mask of the layer's kind, other networks all of them as `diffusion_masks`.
    `dropout`, of probabilities, is not applied.

    Raises:
        ValueError: a layer asks for more than `check_arguments` knows.
    """
    check_arguments(others)
    if diffusion_masks is not None:
        kind = "full_attention" if sliding_window is None else "sliding_attention"
        attention_mask = diffusion_masks[kind]
    if key.shape[1] != query.shape[1]:  # fewer key heads than query heads
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if isinstance(attention_mask, TilePlan):
        out = attend_tiles(query, key, value, attention_mask, scaling)
    elif isinstance(attention_mask, StreamMasks):
        if attention_mask.noisy is None:
            out = _stream_attention(None, (query, key, value), attention_mask, scaling)
        else:
            length = query.shape[2] // 2
            noisy = (query[:, :, :length], key[:, :, :length], value[:, :, :length])
            clean = (query[:, :, length:], key[:, :, length:], value[:, :, length:])
            out = _stream_attention(noisy, clean, attention_mask, scaling)
    else:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling
        )
    return out.transpose(1, 2), None


def _no_mask(*unused: Any, **also_unused: Any) -> None:
    """Masks are always passed in ready; transformers must not build its own."""


_never_compiled: Callable[[Any], Any] = torch.compiler.disable
# Not compiled: a compiler made of chunked products what took half of a whole step (docs/LOG.md).
AttentionInterface.register(IMPLEMENTATION, _never_compiled(training_attention))
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
