"""Weights split over processes (FSDP2): whole tensors into parts, and parts into whole tensors.

accelerate 1.15 wraps a model for FSDP on accelerators only, and makes DDP of it on CPUs without a
word, so the layers are split here, with what torch has for it, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from diffusiongpt.engine.native import layers_of
from diffusiongpt.training.denoiser import Denoiser


def shard(denoiser: Denoiser, processes: int, device: torch.device) -> None:
    """Split every weight over `processes`, in place, by its first dimension.

    A layer is gathered when it runs and let go after; what is outside of the layers (embeddings,
    head) stays gathered from the forward to the end of the backward pass.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for layer in layers_of(denoiser.network):
        fully_shard(layer, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def part_of(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it where it is not split. Shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole `value`, split as `parameter` is. Nothing is sent."""
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    on_device = value.detach().to(part_of(parameter).device)
    return distribute_tensor(on_device, mesh, placements, src_data_rank=None).to_local()


def whole_of(part: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor of which every process has a part, split as `parameter` is.

    Where it is split, all processes must call it, in the same order.
    """
    if not isinstance(parameter, DTensor):
        return part.detach()
    split = DTensor.from_local(
        part.detach(),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return split.full_tensor()


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """The whole weights by name, tied ones once; a call of all processes where they are split."""
    return {
        name: whole_of(part_of(parameter.detach()), parameter)
        for name, parameter in network.named_parameters()
    }


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put whole weights into a network, tied ones once, by name; the network may be split."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            part_of(parameter).copy_(part_like(weights[name], parameter))
