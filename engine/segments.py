"""Who sees whom in a row of packed tokens, in tensors of fixed shapes.

An `AttentionPlan` is Python: it decides which kernels run, and a recorded forward would decide
the same ever after. Here the same facts are the contents of tensors that stay where they are, so
that one recording serves every plan of as many tokens. Two ways, one chosen at loading: a varlen
kernel, or one mask over the whole row, which sees any plan and is quadratic in the row.

Legend: T packed tokens of the row, S segments at most, H heads, D head size.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusiongpt.engine.attention_plan import PADDING_SEGMENT, AttentionPlan
from diffusiongpt.engine.upload import refill
from diffusiongpt.engine.varlen import varlen_attention


class Segments(Protocol):
    """What stands in for an `AttentionPlan` in every layer of a recorded forward.

    Attributes:
        name: of the way, as benchmarks show it. num_tokens: T.
    """

    name: str
    num_tokens: int

    def way_of(self, plan: AttentionPlan) -> str:
        """One of `captured.WAYS`: "captured", or why this cannot hold a plan."""
        ...

    def load(self, plan: AttentionPlan) -> None:
        """Hold a plan of exactly T tokens, which may be padding at its end."""
        ...

    def begin(self) -> None:
        """A forward begins: nothing of the one before may be used again."""
        ...

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention (1, T, H, D) of heads (1, H, T, D); see `packed_attention`."""
        ...


class PlainSegments:
    """Common to both ways: they hold canvases that see themselves alone."""

    sees_blocks = True

    def __init__(self, num_tokens: int, num_segments: int) -> None:
        self.num_tokens = num_tokens
        self._num_segments = num_segments

    def way_of(self, plan: AttentionPlan) -> str:
        """One of `captured.WAYS`: "captured", or why this cannot hold a plan."""
        if any(each is not None for each in plan.caches):
            return "eager_cache"
        if any(each is not None for each in plan.shadows):
            return "eager_shadows"
        if plan.num_tokens > self.num_tokens:
            return "eager_tokens"
        padding = -(-(self.num_tokens - plan.num_tokens) // PADDING_SEGMENT)
        if len(plan.lengths) + padding > self._num_segments:
            return "eager_canvases"
        return "eager_blocks" if plan.has_blocks and not self.sees_blocks else "captured"


class MaskedSegments(PlainSegments):
    """One call of SDPA a layer, under a mask that is made on the device, once a forward for each
    window that layers have."""

    name = "mask"

    def __init__(self, num_tokens: int, num_segments: int, device: torch.device) -> None:
        super().__init__(num_tokens, num_segments)
        self._segment = torch.zeros(num_tokens, dtype=torch.long, device=device)  # (T,)
        self._block = torch.zeros(num_tokens, dtype=torch.long, device=device)  # (T,)
        self._token = torch.arange(num_tokens, device=device)  # (T,)
        self._masks: dict[int | None, Tensor] = {}

    def load(self, plan: AttentionPlan) -> None:
        """The segment that each token is of, and its block within that."""
        lengths = torch.tensor(plan.lengths)
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        within = torch.arange(self.num_tokens) - starts
        blocks = plan.block_lengths or (plan.block_length,) * len(plan.lengths)
        block_lengths = torch.tensor([each or self.num_tokens for each in blocks])
        refill(self._segment, torch.arange(len(lengths)).repeat_interleave(lengths))
        refill(self._block, within // block_lengths.repeat_interleave(lengths))

    def begin(self) -> None:
        """The masks are made anew, by the operations that are recorded."""
        self._masks.clear()

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention (1, T, H, D) of heads (1, H, T, D); see `packed_attention`."""
        if window not in self._masks:
            self._masks[window] = self._mask(window, query.dtype)
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=self._masks[window],
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return output.transpose(1, 2)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """The additive mask (T, T) of layers that see so far."""
        seen = self._segment[:, None] == self._segment
        seen &= self._block <= self._block[:, None]
        if window is not None:
            seen &= (self._token[:, None] - self._token).abs() < window
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
            ~seen, -torch.inf
        )


class VarlenSegments(PlainSegments):
    """One call of PyTorch's varlen kernel a layer, which reads from the device where segments
    end; those that a plan does not have are empty ones at the end.

    Args:
        longest: tokens of the longest segment; None is any.
    """

    name = "varlen"
    sees_blocks = False

    def __init__(
        self,
        num_tokens: int,
        num_segments: int,
        device: torch.device,
        *,
        longest: int | None = None,
    ) -> None:
        super().__init__(num_tokens, num_segments)
        self._longest = longest or num_tokens
        self._ends = torch.zeros(num_segments + 1, dtype=torch.int32, device=device)  # (S + 1,)

    def load(self, plan: AttentionPlan) -> None:
        """The ends of the plan's segments; all others are empty."""
        ends = torch.full((len(self._ends),), self.num_tokens, dtype=torch.int32)
        ends[0] = 0
        ends[1 : 1 + len(plan.lengths)] = torch.tensor(plan.lengths).cumsum(0)
        refill(self._ends, ends)

    def begin(self) -> None:
        """Nothing is kept from layer to layer."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention (1, T, H, D) of heads (1, H, T, D); see `packed_attention`."""
        output = varlen_attention(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            self._ends,
            self._ends,
            max_q=self._longest,
            max_k=self._longest,
            scaling=scaling,
            window=window,
        )
        return output[None]
