"""Attention as plain products with a softmax between them, one stack of tiles after another.

What a CPU with fast matrix units wants: PyTorch's fused attention spends its time there in its
backward pass. Scores are rounded to the inputs' precision, as the products give them; the softmax
and its gradient are computed in float32. B rows, H heads, T positions, S head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffusiongpt.training.tiles import Run, Stack, TilePlan

# Scores that exist at once, for each thread: as many as stay in a core's cache.
SCORES_AT_ONCE = 1 << 20
# A layer's tiles are kept for the backward pass if their probabilities are no larger than this;
# else they are made again.
KEPT_BYTES = 1 << 26


def attend_tiles(
    query: Tensor, key: Tensor, value: Tensor, plan: TilePlan, scaling: float
) -> Tensor:
    """Attention (B, H, T, S) over what the tiles may see; heads lie side by side in memory."""
    out: Tensor = _TileAttention.apply(query, key, value, plan, scaling)  # type: ignore[no-untyped-call]
    return out


class _TileAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: TilePlan, scaling: float
    ) -> Tensor:
        out = _like(query)
        ctx.parts, ctx.scaling, kept = list(_parts(query, plan)), scaling, []
        ctx.keeps = any(ctx.needs_input_grad) and _probability_bytes(query, plan) <= KEPT_BYTES
        for rows, stack in ctx.parts:
            q, k, v = _tiles_of(stack, query[rows], key[rows], value[rows])
            p = _probabilities(q, k, stack.mask[rows], scaling)
            _put(out[rows], stack.queries, torch.bmm(p, v))
            if ctx.keeps:
                kept += [q, k, v, p]
        ctx.save_for_backward(*(kept if ctx.keeps else (query, key, value)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        saved, scaling = ctx.saved_tensors, ctx.scaling
        of_query, of_key, of_value = _like(grad), _like(grad).zero_(), _like(grad).zero_()
        for part, (rows, stack) in enumerate(ctx.parts):
            if ctx.keeps:
                q, k, v, p = saved[4 * part : 4 * part + 4]
            else:
                q, k, v = _tiles_of(stack, *(x[rows] for x in saved))
                p = _probabilities(q, k, stack.mask[rows], scaling)
            g = _take(grad[rows], stack.queries, q.shape[1])
            _add(of_value[rows], stack.keys, torch.bmm(p.mT, g))
            s = _softmax_gradient(torch.bmm(g, v.mT), p)
            _put(of_query[rows], stack.queries, _scaled_product(s, k, scaling))
            _add(of_key[rows], stack.keys, _scaled_product(s.mT, q, scaling))
        return of_query, of_key, of_value, None, None


def _parts(query: Tensor, plan: TilePlan) -> Iterator[tuple[slice, Stack]]:
    """As many rows of a stack at a time as `SCORES_AT_ONCE` lets, at least one."""
    at_once = SCORES_AT_ONCE * torch.get_num_threads()
    for stack in plan.stacks:
        rows = max(1, at_once // (query.shape[1] * stack.mask[0].numel()))
        for start in range(0, query.shape[0], rows):
            yield slice(start, start + rows), stack


def _probability_bytes(query: Tensor, plan: TilePlan) -> int:
    pairs = sum(stack.mask.numel() for stack in plan.stacks)
    return pairs * query.shape[1] * query.element_size()


def _like(x: Tensor) -> Tensor:
    """Room for (B, H, T, S) whose heads lie side by side, as the layers around have them."""
    rows, heads, length, size = x.shape
    return x.new_empty(rows, length, heads, size).transpose(1, 2)


def _tiles_of(
    stack: Stack, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys = stack.mask.shape[3:]
    return (
        _take(query, stack.queries, queries),
        _take(key, stack.keys, keys),
        _take(value, stack.keys, keys),
    )


def _take(x: Tensor, runs: tuple[Run, ...], length: int) -> Tensor:
    """(B, H, T, S) -> (B H N, `length`, S): the runs of N tiles."""
    taken = torch.cat([x[:, :, start:stop] for start, stop in runs], dim=2)
    return taken.view(-1, length, x.shape[3])


def _put(x: Tensor, runs: tuple[Run, ...], tiles: Tensor) -> None:
    """Write what `_take` would take."""
    for place, part in _split(x, runs, tiles):
        place.copy_(part)


def _add(x: Tensor, runs: tuple[Run, ...], tiles: Tensor) -> None:
    """Add to what `_take` would take."""
    for place, part in _split(x, runs, tiles):
        place.add_(part)


def _split(x: Tensor, runs: tuple[Run, ...], tiles: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows, heads, _, size = x.shape
    lengths = [stop - start for start, stop in runs]
    parts = torch.split(tiles.view(rows, heads, -1, size), lengths, dim=2)
    for (start, stop), part in zip(runs, parts, strict=True):
        yield x[:, :, start:stop], part


def _probabilities(q: Tensor, k: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """softmax(`scaling` q k' + mask), (B H N, Q, K); mask (B, 1, N, Q, K)."""
    heads = len(q) // (mask.shape[0] * mask.shape[2])
    scores = mask.expand(-1, heads, -1, -1, -1).clone(memory_format=torch.contiguous_format)
    scores = scores.view(-1, *mask.shape[3:])
    torch.baddbmm(scores, q, k.mT, alpha=scaling, out=scores)
    return torch.softmax(scores, dim=-1, out=scores)


def _softmax_gradient(grad: Tensor, probabilities: Tensor) -> Tensor:
    """p (g - sum of p g), in the memory of `grad`."""
    gradient: Tensor = torch.ops.aten._softmax_backward_data.out(
        grad, probabilities, -1, probabilities.dtype, grad_input=grad
    )
    return gradient


def _scaled_product(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(out, left, right, beta=0, alpha=scaling, out=out)
