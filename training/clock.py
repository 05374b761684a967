"""How far a run is, by steps or by minutes, and other things that all its processes know alike."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed


class RunClock:
    """How far a run is, 0..1, by steps or by minutes, whichever is further; survives a resume.

    It is read once a step, by the first process for all of them: learning rate, saving and the
    end depend on it.
    """

    def __init__(self, max_steps: int, max_minutes: float | None) -> None:
        self.max_steps, self.max_minutes = max_steps, max_minutes
        self.seconds_before = 0.0
        self.seconds_now = 0.0
        self.started_at = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds of training up to the last step, those before a resume included."""
        return self.seconds_before + self.seconds_now

    def start(self) -> None:
        """Begin to count."""
        self.started_at = time.monotonic()

    def tick(self) -> None:
        """Read the time."""
        self.seconds_now = agree(time.monotonic() - self.started_at)

    def progress(self, step: int) -> float:
        """The share of the run that is done after `step` steps."""
        by_steps = step / self.max_steps
        if self.max_minutes is None:
            return by_steps
        return max(by_steps, self.elapsed_s / (60 * self.max_minutes))


def agree(value: float) -> float:
    """What the first process says, for all of them."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    said = [value]
    torch.distributed.broadcast_object_list(said, src=0)
    return float(said[0])


def gather_objects(value: Any) -> list[Any]:
    """What each process says, in their order; a call of all of them."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    said: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(said, value)
    return said
