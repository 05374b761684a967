"""Keys and values that a request keeps from one step to the next.

In a block-causal model what a block computes depends on itself and earlier blocks alone, so a
settled block's keys and values never change: keeping them is `exact`. A block is stored by the
first forward that sees it clean, which is the first step of the block after it.

In a bidirectional model every key depends on the whole canvas, so keeping any is an
approximation (Fast-dLLM, arXiv 2505.22618, section 3): the first step of a block computes the
canvas anew, and the block's later steps keep what lies before it (`prefix`), or before and
after it (`dual`), as it was then.

Legend: H key heads, C positions of the canvas, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from diffusiongpt.engine.pool import Room

CacheKind = Literal["exact", "prefix", "dual"]


class SlotCache:
    """The keys and values of one request, a pair of (1, H, C, D) buffers a layer.

    Args:
        capacity: C, positions that the request will ever have.
        kind: what is kept. lead: positions before the block that are computed with it all the
            same: one where the logits at a position predict the next one.
        room: where the buffers are in the pool of all requests; None is memory of their own.

    Attributes:
        length: leading positions that are kept; what is computed goes behind them.
        extent: positions that are seen in any case, so that those behind what is computed are
            kept, too.
    """

    def __init__(
        self,
        capacity: int,
        kind: CacheKind = "exact",
        *,
        lead: int = 0,
        room: Room | None = None,
    ) -> None:
        self.length = 0
        self.extent = 0
        self.room = room
        self._capacity = capacity
        self._kind = kind
        self._lead = lead
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def is_exact(self) -> bool:
        """Whether what is kept never changes."""
        return self._kind == "exact"

    def enter_block(self) -> None:
        """A block begins: what is not exact is computed anew."""
        if self._kind != "exact":
            self.length = self.extent = 0

    def note_forward(self, block_start: int, block_length: int) -> None:
        """A forward has filled the buffers: keep what the kind keeps while the block that
        starts at `block_start` is denoised."""
        if self._kind == "exact":
            self.length = block_start // block_length * block_length
            return
        self.length = max(block_start - self._lead, 0)
        if self._kind == "dual":
            self.extent = self._capacity

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values (1, H, L, D) of the positions after `length` behind those that
        are kept; all that are seen, (1, H, max(length + L, extent), D)."""
        keys, values = self._buffers(layer, key, value)
        stop = self.length + key.shape[2]
        keys[:, :, self.length : stop] = key
        values[:, :, self.length : stop] = value
        seen = max(stop, self.extent)
        return keys[:, :, :seen], values[:, :, :seen]

    def _buffers(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.room is not None:
            return self.room.layer(layer)
        if layer not in self._layers:
            shape = (1, key.shape[1], self._capacity, key.shape[3])
            self._layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        return self._layers[layer]

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The buffers of each layer that has some."""
        if self.room is not None:
            return [self.room.layer(layer) for layer in range(len(self.room.pool.layers))]
        return [self._layers[layer] for layer in sorted(self._layers)]

    def copy(self, start: int, stop: int) -> Tensor:
        """The keys and values of the positions start..stop, (2 * layers, H, stop - start, D)."""
        return torch.cat([each[:, :, start:stop] for pair in self._pairs() for each in pair])

    def load(self, parts: Sequence[Tensor]) -> None:
        """Begin with the positions of `parts`, one after another, as `copy` gave them."""
        whole = torch.cat(list(parts), dim=2)
        for layer in range(len(whole) // 2):
            self.extend(layer, whole[2 * layer, None], whole[2 * layer + 1, None])
        self.length = whole.shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory that the buffers take."""
        return sum(buffer.nbytes for pair in self._pairs() for buffer in pair)

    def give_back(self) -> None:
        """End the use of the buffers, which the request will not come back to."""
        if self.room is not None:
            self.room.give_back()
