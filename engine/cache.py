"""Keys and values of a request's settled blocks, so that a block-causal model computes them once.

In a block-causal model what a block computes depends on itself and earlier blocks alone, so a
settled block's keys and values never change: this cache is exact. A block is stored by the first
forward that sees it clean, which is the first step of the block after it.

Legend: H key heads, C positions of the canvas, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SlotCache:
    """The keys and values of one request, a pair of (1, H, C, D) buffers a layer.

    Args:
        capacity: C, positions that the request will ever have.

    Attributes:
        length: leading positions whose keys and values are final.
    """

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self._capacity = capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values (1, H, L, D) of the positions after `length` behind those that
        are stored; all of them, (1, H, length + L, D). Nothing of it is final yet."""
        if layer not in self._layers:
            shape = (1, key.shape[1], self._capacity, key.shape[3])
            self._layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        keys, values = self._layers[layer]
        stop = self.length + key.shape[2]
        keys[:, :, self.length : stop] = key
        values[:, :, self.length : stop] = value
        return keys[:, :, :stop], values[:, :, :stop]

    def copy(self, start: int, stop: int) -> Tensor:
        """The keys and values of the positions start..stop, (2 * layers, H, stop - start, D)."""
        pairs = (self._layers[layer] for layer in sorted(self._layers))
        return torch.cat([each[:, :, start:stop] for pair in pairs for each in pair])

    def load(self, parts: Sequence[Tensor]) -> None:
        """Begin with the positions of `parts`, one after another, as `copy` gave them."""
        whole = torch.cat(list(parts), dim=2)
        for layer in range(len(whole) // 2):
            self.extend(layer, whole[2 * layer, None], whole[2 * layer + 1, None])
        self.length = whole.shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory that the buffers take."""
        return sum(buffer.nbytes for pair in self._layers.values() for buffer in pair)
