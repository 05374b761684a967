"""Puts what the host knows on the device, without waiting for what the device is doing.

A copy from ordinary memory to a CUDA device waits for everything that was started before; one
from pinned memory is started like a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Values on the host, put on the device."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def refill(buffer: Tensor, values: Tensor) -> None:
    """Overwrite a buffer on the device by values on the host."""
    if buffer.device.type == "cuda":
        values = values.pin_memory()
    buffer.copy_(values, non_blocking=True)
