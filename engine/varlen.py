"""PyTorch's varlen kernel: whether it can be used, and how it is called.

Its arguments have changed from release to release (2.11 to 2.13), so they are looked up, and
what its documentation leaves open is tried.

Legend: T packed tokens, S sequences, H heads, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_varlen: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn as _varlen
except ImportError:  # a build of torch without it
    _varlen = None

_LARGEST_HEAD = 256
_AMPERE = (8, 0)
_OPTIONS = {"scale", "window_size", "enable_gqa"}


def head_size_of(config: Any) -> int:
    """The size of a head in a config that transformers ships."""
    size: int | None = getattr(config, "head_dim", None)
    return size or int(config.hidden_size // config.num_attention_heads)


def has_varlen(
    config: Any, dtype: torch.dtype, device: torch.device, *, with_ranges: bool = False
) -> bool:
    """Whether the kernel takes a model's heads on a device.

    Args:
        config: of the class that transformers ships.
        with_ranges: whether it is to be told how many keys of a sequence are used.
    """
    if _varlen is None or device.type != "cuda":
        return False
    options = _OPTIONS | ({"seqused_k"} if with_ranges else set())
    size = head_size_of(config)
    return (
        inspect.signature(_varlen).parameters.keys() >= options
        and torch.cuda.get_device_capability(device) >= _AMPERE
        and dtype in (torch.bfloat16, torch.float16)
        and size % 8 == 0
        and size <= _LARGEST_HEAD
    )


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    key_ends: Tensor,
    *,
    max_q: int,
    max_k: int,
    scaling: float,
    window: int | None,
    used: Tensor | None = None,
) -> Tensor:
    """Attention (T, H, D) of queries (T, H, D), sequence by sequence.

    Args:
        key, value: (N, H, D), with as many or fewer heads.
        ends, key_ends: (S + 1,) int32, where sequences of queries and of keys end, from 0 on.
        max_q, max_k: bounds of their lengths.
        window: i sees j where |i - j| <= window - 1, the last query standing at the last key.
        used: (S,) int32, how many keys from the beginning of its sequence each sees; None is all.
    """
    if _varlen is None:
        raise RuntimeError("this PyTorch has no varlen attention")
    reach = -1 if window is None else window - 1
    ranges = {} if used is None else {"seqused_k": used}
    output: Tensor = _varlen(
        query,
        key,
        value,
        ends,
        key_ends,
        max_q,
        max_k,
        scale=scaling,
        window_size=(reach, reach),
        enable_gqa=key.shape[1] != query.shape[1],
        **ranges,
    )
    return output
