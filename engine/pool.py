"""One place for the keys and values of all running requests, in buffers that never move.

A recorded forward reads and writes the memory that it was recorded with, so requests with an
exact cache keep their keys in ranges of one pool instead of buffers of their own. A range is
contiguous: eager attention reads it as a view, kernels find it by where it starts.

Legend: N positions of the pool, C of a request, H key heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """A request's positions in the pool, start..start + length."""

    pool: KeyPool
    start: int
    length: int

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Its keys and values in a layer, views of (1, H, C, D)."""
        stop = self.start + self.length
        keys, values = self.pool.layers[layer]
        return (
            keys[self.start : stop].transpose(0, 1)[None],
            values[self.start : stop].transpose(0, 1)[None],
        )

    def give_back(self) -> None:
        """End the use of the positions; what they hold may be overwritten."""
        self.pool.give_back(self)


class KeyPool:
    """Owns the buffers; `take` gives a request its room.

    Args:
        num_positions: that requests may have together.
        num_scratch: positions in front that nobody takes: the keys of padding go there.

    Attributes:
        layers: keys and values (N, H, D) of each layer, scratch included.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        num_positions: int,
        *,
        num_scratch: int,
        num_layers: int,
        num_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_positions = num_scratch + num_positions
        shape = (self.num_positions, num_heads, head_size)
        # Zeros, because what no key was written to is multiplied by a weight of 0.
        self.layers = tuple(
            (
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(num_layers)
        )
        self._free = [(num_scratch, self.num_positions)]  # start, stop; ascending, apart

    @property
    def num_free(self) -> int:
        """Positions that nobody has, not all of them side by side."""
        return sum(stop - start for start, stop in self._free)

    def take(self, length: int) -> Room | None:
        """The first free range of so many positions; None where there is none in one piece."""
        for index, (start, stop) in enumerate(self._free):
            if stop - start >= length:
                rest = [(start + length, stop)] if stop - start > length else []
                self._free[index : index + 1] = rest
                return Room(self, start, length)
        return None

    def give_back(self, room: Room) -> None:
        """Free a room's positions."""
        joined: list[tuple[int, int]] = []
        for start, stop in sorted([*self._free, (room.start, room.start + room.length)]):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
        self._free = joined
