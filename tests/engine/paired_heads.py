"""A fused head and the head in chunks over the same random product, and rows to try them on."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusiongpt.engine.fused_head import FusedHead
from diffusiongpt.engine.randomness import Purpose, counter_keys
from diffusiongpt.engine.rows import DrawParams, Draws, RowStatistics
from diffusiongpt.engine.sampling import Head

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_CUDA = torch.cuda.is_available()
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
# The interpreter multiplies the bits of bfloat16 numbers; 16 bits are those of float16 there.
TYPES = [torch.float32, torch.float16, *([] if IS_INTERPRETED else [torch.bfloat16])]
BANNED = [0, 4, 7]
DELETE = 4

by_kernels = pytest.mark.skipif(not (IS_INTERPRETED or HAS_CUDA), reason="no CUDA device")
on_cuda = pytest.mark.skipif(IS_INTERPRETED or not HAS_CUDA, reason="no CUDA device")


def new_product(vocab_size: int, hidden_size: int, dtype: torch.dtype, *, bias: bool) -> nn.Linear:
    """A last product whose logits are some units apart."""
    product = nn.Linear(hidden_size, vocab_size, bias=bias)
    generator = torch.Generator().manual_seed(vocab_size + hidden_size)
    for each in product.parameters():
        each.data = torch.randn(each.shape, generator=generator)
    product.weight.data *= 3 * hidden_size**-0.5
    return product.to(DEVICE, dtype).requires_grad_(False)


def new_heads(product: nn.Linear, **options: Any) -> tuple[FusedHead, Head]:
    banned = torch.tensor(BANNED, device=DEVICE)
    fused = FusedHead(torch.clone, product, banned, delete_token_id=DELETE, **options)
    chunked = Head(
        lambda rows: product(rows).float(), banned, chunk=50, pad=False, delete_token_id=DELETE
    )
    return fused, chunked


def draw_params(num_rows: int, seed: int = 5, temperature: float | None = None) -> DrawParams:
    row = torch.arange(num_rows, device=DEVICE)
    mixed = torch.tensor([1.0, 0.0, 0.3, 2.0], device=DEVICE)[row % 4]
    zeros = torch.zeros(num_rows, device=DEVICE)
    key = counter_keys(torch.tensor(seed, device=DEVICE), Purpose.DRAW, row)
    return DrawParams(
        key, mixed if temperature is None else zeros + temperature, zeros + 1, row * 0, zeros
    )


def new_rows(num_rows: int, product: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, tokens held, and whether rows may be deleted."""
    generator = torch.Generator().manual_seed(num_rows)
    hidden = torch.randn(num_rows, product.in_features, generator=generator)
    held = torch.randint(product.out_features, (num_rows,), generator=generator)
    may_delete = torch.rand(num_rows, generator=generator) < 0.5
    return hidden.to(product.weight), held.to(DEVICE), may_delete.to(DEVICE)


def expect_alike(one: RowStatistics | Draws, other: RowStatistics | Draws, dtype: Any) -> None:
    """The same tokens and nearly the same numbers. In 16 bits a logit that lies between two
    numbers may be rounded to either by either way, and so decide some row."""
    near = 2e-3 if dtype == torch.float32 else 7e-2
    apart = torch.zeros(len(one.columns()[0]), dtype=torch.bool, device=DEVICE)
    for mine, theirs in zip(one.columns(), other.columns(), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        is_id = not mine.is_floating_point()
        apart |= mine != theirs if is_id else ~torch.isclose(mine, theirs, rtol=1e-3, atol=near)
    assert apart.sum() <= (0 if dtype == torch.float32 else len(apart) // 10)
