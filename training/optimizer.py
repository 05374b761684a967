"""Optimisers: float32 masters and their average behind bf16 weights, AdamW, Muon, the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from diffusiongpt.training.config import RunConfig
from diffusiongpt.training.sharding import part_like, part_of, whole_of

# The factor at a share x of the decay, from 1 down to 0.
DECAY_SHAPES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "sqrt": lambda x: 1 - math.sqrt(x),  # arXiv 2405.18392
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "linear": lambda x: 1 - x,
    }
)


def schedule_factor(progress: float, warmup: float, decay: float, shape: str = "sqrt") -> float:
    """Warm-up, stable, decay: the learning rate's factor at `progress` in 0..1.

    (0.5, 0.1, 0.2) -> 1. A decay that begins where the warm-up ends leaves out what is stable: of
    the shape `cosine` it is the usual cosine schedule.
    """
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    if decay and progress > 1 - decay:
        return DECAY_SHAPES[shape](min((progress - (1 - decay)) / decay, 1.0))
    return 1.0


class MasterWeights(Optimizer):
    """Optimisers that step float32 copies of the weights and keep a moving average of them.

    The network may hold bf16 weights: gradients are widened, the copies are stepped, and the
    result is rounded back. With float32 weights this is the plain optimiser, plus the average.
    Of weights that are split over processes each process steps its own parts.

    Args:
        parameters: the network's parameters, matrices for Muon first when `groups` has two.
        make: builds the inner optimisers from lists of float32 copies, one list per group.
        groups: parameters of each inner optimiser.
        ema_decay: of the average; the early average is shorter: min(decay, (1+n)/(10+n)).
    """

    def __init__(
        self,
        groups: list[list[nn.Parameter]],
        make: list[Callable[[list[Tensor]], Optimizer]],
        ema_decay: float,
    ) -> None:
        self.groups = groups
        self.masters: list[list[Tensor]] = [
            [part_of(p.detach()).clone().float().requires_grad_() for p in group]
            for group in groups
        ]
        self.average = [[m.detach().clone() for m in group] for group in self.masters]
        self.inner = [
            build(list(masters)) for build, masters in zip(make, self.masters, strict=True)
        ]
        self.ema_decay = ema_decay
        self.updates = 0
        self._gathered: dict[str, Any] | None = None
        super().__init__(
            [
                {"params": group, "lr": inner.param_groups[0]["lr"]}
                for group, inner in zip(groups, self.inner, strict=True)
            ],
            {},
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every inner optimiser, the average, and the weights rounded back."""
        self.updates += 1
        decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
        for group, masters, average, inner, outer in zip(
            self.groups, self.masters, self.average, self.inner, self.param_groups, strict=True
        ):
            for parameter, master in zip(group, masters, strict=True):
                if parameter.grad is None:
                    master.grad = None
                elif master.grad is None:
                    master.grad = part_of(parameter.grad).float()
                else:
                    master.grad.copy_(part_of(parameter.grad))
            for inner_group in inner.param_groups:
                inner_group["lr"] = outer["lr"]
            inner.step()
            torch._foreach_lerp_(average, [m.detach() for m in masters], 1 - decay)
            parts = [part_of(parameter.detach()) for parameter in group]
            torch._foreach_copy_(parts, [m.detach() for m in masters])

    def average_of(self, network: nn.Module) -> dict[str, Tensor]:
        """The averaged float32 weights by parameter name; of split ones this process's parts."""
        by_parameter = {
            id(parameter): average
            for group, averages in zip(self.groups, self.average, strict=True)
            for parameter, average in zip(group, averages, strict=True)
        }
        return {
            name: by_parameter[id(parameter)]
            for name, parameter in network.named_parameters()
            if id(parameter) in by_parameter
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs, in whole tensors: masters, average, inner optimisers."""
        return self._gather() if self._gathered is None else self._gathered

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All processes put their parts together; inside, one alone may ask for `state_dict`."""
        self._gathered = self._gather()
        try:
            yield
        finally:
            self._gathered = None

    def _gather(self) -> dict[str, Any]:
        return {
            "state": {},
            "param_groups": [{"lr": group["lr"]} for group in self.param_groups],
            "masters": self._whole(self.masters),
            "average": self._whole(self.average),
            "inner": [
                _map_state(inner.state_dict(), group, masters, whole_of)
                for inner, group, masters in zip(self.inner, self.groups, self.masters, strict=True)
            ],
            "updates": self.updates,
        }

    def _whole(self, parts: list[list[Tensor]]) -> list[list[Tensor]]:
        return [
            [whole_of(part, parameter) for part, parameter in zip(some, group, strict=True)]
            for some, group in zip(parts, self.groups, strict=True)
        ]

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, and set the weights to the rounded masters."""
        for ours, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            ours["lr"] = theirs["lr"]
        for mine, stored in ((self.masters, "masters"), (self.average, "average")):
            for group, parts, values in zip(self.groups, mine, state_dict[stored], strict=True):
                for parameter, part, value in zip(group, parts, values, strict=True):
                    part.copy_(part_like(value, parameter))
        for inner, inner_state, group in zip(
            self.inner, state_dict["inner"], self.groups, strict=True
        ):
            inner.load_state_dict(_map_state(inner_state, group, group, part_like))
        self.updates = state_dict["updates"]
        for group, masters in zip(self.groups, self.masters, strict=True):
            for parameter, master in zip(group, masters, strict=True):
                part_of(parameter).copy_(master)


def _map_state(
    state: dict[str, Any],
    group: list[nn.Parameter],
    shaped: Sequence[Tensor],
    change: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Any]:
    """An inner optimiser's state with `change` done to what is shaped like its weights."""
    changed = {
        index: {
            key: change(value, group[index])
            if torch.is_tensor(value) and value.shape == shaped[index].shape
            else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": changed}


def build_optimizer(network: nn.Module, config: RunConfig) -> MasterWeights:
    """AdamW for everything, or Muon for the matrices inside the layers and AdamW for the rest."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.dim() == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices} if config.optimizer == "muon" else set()
    decayed = [p for _, p in named if p.dim() >= 2 and id(p) not in chosen]
    plain = [p for _, p in named if p.dim() < 2]
    groups, make = [decayed, plain], [_adamw(config, config.weight_decay), _adamw(config, 0.0)]
    if chosen:
        groups.insert(0, matrices)
        make.insert(0, _muon(config))
    kept = [(group, build) for group, build in zip(groups, make, strict=True) if group]
    return MasterWeights(
        [group for group, _ in kept], [build for _, build in kept], config.ema_decay
    )


def _adamw(config: RunConfig, weight_decay: float) -> Callable[[Iterable[Tensor]], Optimizer]:
    def build(parameters: Iterable[Tensor]) -> Optimizer:
        return AdamW(
            parameters,
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=weight_decay,
            fused=True,
        )

    return build


def _muon(config: RunConfig) -> Callable[[Iterable[Tensor]], Optimizer]:
    def build(parameters: Iterable[Tensor]) -> Optimizer:
        return Muon(
            list(parameters),
            lr=config.muon_learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="original",
        )

    return build
