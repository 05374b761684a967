"""What a run will cost, said before it starts: memory, tokens, operations, time."""

from __future__ import annotations

import dataclasses
import math
import resource
import time
from collections.abc import Iterator

import torch
from torch import nn

from diffusiongpt.training.config import TrainingConfig
from diffusiongpt.training.data import RowDataset
from diffusiongpt.training.flops import flops_per_token
from diffusiongpt.training.sharding import part_of
from diffusiongpt.training.trainer import DiffusionTrainer


def dry_run(trainer: DiffusionTrainer, measured_steps: int = 2) -> Iterator[str]:
    """Lines of a report; takes a first step and `measured_steps` more, and keeps nothing."""
    config, denoiser = trainer.config, trainer._denoiser()
    network = denoiser.network
    run = config.run
    rows = run.batch_size * run.gradient_accumulation_steps * trainer.args.world_size
    tokens = rows * config.data.max_seq_length
    total = count_parameters(network)
    trained = count_parameters(network, trained=True)
    yield f"parameters: {total:,}, of which {trained:,} are trained"
    data = trainer.train_dataset
    size = f"{len(data):,}" if isinstance(data, RowDataset) else "a stream of"
    yield f"data: {size} rows of {config.data.max_seq_length} tokens"
    line = f"steps: {run.max_steps:,} of {tokens:,} tokens, {tokens * run.max_steps:,} in all"
    if isinstance(data, RowDataset):
        line += f", {rows * run.max_steps / len(data):.1f} passes over the data"
    yield line
    operations = flops_per_token(denoiser, config) * tokens
    yield f"operations: {flop(operations)} a step, {flop(operations * run.max_steps)} in all"
    seconds = _seconds_per_step(trainer, measured_steps)
    yield f"memory: {state_bytes(trainer) / 1e6:,.1f} MB of weights, gradients and optimiser"
    yield f"memory: {_peak_bytes() / 1e6:,.1f} MB at the peak, measured"
    yield (
        f"time: {seconds:.3g} s a step, {tokens / seconds:,.0f} tokens/s, "
        f"{duration(seconds * run.max_steps)} in all, measured over {measured_steps} steps"
    )
    if run.max_minutes is not None:
        steps = max(1, min(run.max_steps, round(60 * run.max_minutes / seconds)))
        yield (
            f"time: the run ends after {run.max_minutes:g} minutes at the latest, about "
            f"{steps:,} steps and {steps * tokens:,} tokens"
        )


def flop(count: float) -> str:
    """A number of operations in the unit that suits it: 1.01e11 -> 101 GFLOP."""
    power = min(max(int(math.log10(max(count, 1))) // 3, 0), len(_PREFIXES) - 1)
    return f"{count / 1000**power:,.3g} {_PREFIXES[power]}FLOP"


_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 90,600 -> 25.2 hours."""
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def count_parameters(network: nn.Module, trained: bool = False) -> int:
    """How many numbers a network has, tied ones once; `trained`: those that are trained."""
    parameters = network.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not trained)


def state_bytes(trainer: DiffusionTrainer) -> int:
    """Bytes of weights, gradients, float32 masters, their average and the optimiser's state.

    Of weights that are split over processes: what this process holds.
    """
    parameters = list(trainer._denoiser().parameters())
    held = sum(part_of(p).numel() * p.element_size() for p in parameters)
    held += sum(part_of(p).numel() * p.element_size() for p in parameters if p.requires_grad)
    masters = trainer.masters
    tensors = [x for group in (*masters.masters, *masters.average) for x in group]
    tensors += [x.grad for group in masters.masters for x in group if x.grad is not None]
    for inner in masters.inner:
        tensors += [
            x for state in inner.state.values() for x in state.values() if torch.is_tensor(x)
        ]
    return held + sum(x.numel() * x.element_size() for x in tensors)


def with_ratio(config: TrainingConfig, num_parameters: int, world_size: int) -> TrainingConfig:
    """The configuration with as many steps as `target_param_data_ratio` tokens a parameter take.

    10 M parameters at a ratio of 20 and 4,096 tokens a step: 48,829 steps.
    """
    run = config.run
    if run.target_param_data_ratio is None:
        return config
    rows = run.batch_size * run.gradient_accumulation_steps * world_size
    tokens = run.target_param_data_ratio * num_parameters
    steps = max(1, -int(-tokens // (rows * config.data.max_seq_length)))
    return dataclasses.replace(config, run=dataclasses.replace(run, max_steps=steps))


def _seconds_per_step(trainer: DiffusionTrainer, steps: int) -> float:
    optimizer = trainer.create_optimizer()
    model: nn.Module = trainer.model  # type: ignore[assignment]
    model.train()
    batches = iter(trainer.get_train_dataloader())
    start = 0.0
    for step in range(steps + 1):
        trainer.state.global_step = step  # what the corruption is keyed by
        if step == 1:  # the first step warms up: it compiles, and makes the optimiser's state
            start = time.perf_counter()
        for _ in range(trainer.args.gradient_accumulation_steps):
            batch = next(batches, None)
            if batch is None:
                batches = iter(trainer.get_train_dataloader())
                batch = next(batches)
            trainer.compute_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - start) / steps


def _peak_bytes() -> int:
    """The most memory this process has held; of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
