"""The commands that train: a tokenizer, a pre-training, a fine-tuning, or their cost first."""

from __future__ import annotations

import atexit
import copy
import logging
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, default_data_collator

from diffusiongpt.training.backbones import has_adapters, merge_adapters
from diffusiongpt.training.callbacks import ClockCallback, ProgressCallback
from diffusiongpt.training.card import run_figures, write_card, write_figures
from diffusiongpt.training.checkpoints import (
    check_same,
    check_same_rows,
    forget_checkpoints,
    last_checkpoint,
    remember_run,
)
from diffusiongpt.training.config import ConfigError, RunConfig, RunError, TrainingConfig
from diffusiongpt.training.data import (
    RowDataset,
    build_dataset,
)
from diffusiongpt.training.denoiser import Denoiser, build_network
from diffusiongpt.training.dry_run import count_parameters, with_ratio
from diffusiongpt.training.export import check_folder, export_folder
from diffusiongpt.training.folders import load_tokenizer
from diffusiongpt.training.samples import SampleCallback
from diffusiongpt.training.sources import open_records
from diffusiongpt.training.stream import RowStream
from diffusiongpt.training.tokenizer import (
    DELETE,
    IM_START,
    MASK,
    PAD,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)
from diffusiongpt.training.trainer import DiffusionTrainer, leave_processes

logger = logging.getLogger(__name__)


def make_tokenizer(
    files: list[str], data_dir: str, folder: str, vocab_size: int, max_length: int
) -> Path:
    """Train the byte-level BPE on the texts of `files` and write it into `folder`."""

    def texts() -> Iterator[str]:
        for name in files:
            for record in open_records(name, data_dir):
                if "text" in record:
                    yield record["text"]
                else:
                    yield from (message["content"] for message in record["messages"])

    tokenizer = train_tokenizer(texts(), vocab_size, max_length)
    if len(tokenizer) < vocab_size:
        logger.info(
            "%d tokens and not %d: the texts have no more to merge", len(tokenizer), vocab_size
        )
    save_tokenizer(tokenizer, folder)
    return Path(folder)


def build_denoiser(config: TrainingConfig, tokenizer: Any) -> Denoiser:
    """The network of a configuration under its objective, in the precision it trains in."""
    special = special_ids(tokenizer)
    torch.manual_seed(config.run.seed)
    network = build_network(config.model, len(tokenizer), config.data.max_seq_length, special)
    if config.run.precision == "bf16":
        network.bfloat16()
    if config.run.gradient_checkpointing:
        enable: Callable[[], None] = network.gradient_checkpointing_enable
        enable()
    denoiser = Denoiser(
        network,
        config.diffusion.objective,
        config.block_length,
        special[MASK],
        [special[token] for token in (PAD, IM_START, MASK, DELETE)],
        special[DELETE] if config.diffusion.insertion_corruption else None,
        config.model.logit_shift,
    )
    if config.run.compile:
        denoiser.compile_layers()
    return denoiser


def load_rows(config: TrainingConfig, tokenizer: Any) -> RowDataset | RowStream:
    """The rows that a configuration trains on."""
    if config.data.streaming:
        return RowStream(config, tokenizer)
    return build_dataset(
        config.data,
        config.stage,
        config.diffusion.objective,
        config.alignment,
        tokenizer,
        config.run.seed,
    )


def make_trainer(config: TrainingConfig) -> DiffusionTrainer:
    """Everything a run needs, ready to train."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    _check_launch(config.run, processes)
    tokenizer = load_tokenizer(config.data.tokenizer)
    dataset = load_rows(config, tokenizer)
    if isinstance(dataset, RowDataset):
        logger.info("%d rows of %d tokens", len(dataset), config.data.max_seq_length)
        check_enough(len(dataset), config.run, processes)
    denoiser = build_denoiser(config, tokenizer)
    config = with_ratio(config, count_parameters(denoiser.network), processes)
    trainer = DiffusionTrainer(
        denoiser,
        config,
        train_dataset=dataset,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    atexit.register(leave_processes, weakref.ref(trainer))
    run = config.run
    tokens = run.batch_size * run.gradient_accumulation_steps * config.data.max_seq_length
    trainer.add_callback(ClockCallback(trainer.clock, run.save_every_minutes))
    trainer.remove_callback(PrinterCallback)  # our own says more
    has_bar = run.progress_bar and sys.stderr.isatty()
    trainer.add_callback(ProgressCallback(trainer.clock, tokens * processes, has_bar))
    if run.sample_steps is not None:
        export = partial(export_average, trainer)
        trainer.add_callback(SampleCallback(trainer, run.sample_steps, export))
    return trainer


def _check_launch(run: RunConfig, processes: int) -> None:
    for name, variable in (("FSDP", "FSDP"), ("DeepSpeed", "DEEPSPEED")):
        if os.environ.get(f"ACCELERATE_USE_{variable}", "false").lower() == "true":
            raise ConfigError(
                f"accelerate asks for {name}, which cannot be honoured: on CPUs it would make DDP "
                "of it; launch without it, and with --fsdp true to split the weights"
            )
    if run.report_to != "none" and find_spec(run.report_to) is None:
        raise ConfigError(
            f"run.report_to={run.report_to} needs it to be installed: pip install {run.report_to}"
        )
    if run.fsdp and processes == 1:
        raise ConfigError(
            "run.fsdp splits the weights over processes, and there is 1; launch more of them "
            "(torchrun --nproc_per_node 2 ...) or leave it out"
        )


def check_enough(rows: int, run: RunConfig, processes: int) -> None:
    """Refuse data that gives no step."""
    needed = run.batch_size * run.gradient_accumulation_steps * processes
    if rows < needed:
        raise ConfigError(
            f"the data gives {rows} row{'' if rows == 1 else 's'}, fewer than the {needed} of a "
            "step; lower run.batch_size or add data"
        )


def train(config: TrainingConfig) -> Path:
    """Run a stage to its end (or resume it) and write the averaged weights into `final`."""
    output = Path(config.run.output_dir)
    _check_writable(output)
    trainer = make_trainer(config)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(output) if config.run.resume else None
    rows = trainer.train_dataset
    fingerprint = rows.fingerprint() if isinstance(rows, RowDataset) else None
    if checkpoint:
        check_same(config, output)
        if fingerprint is not None:
            check_same_rows(fingerprint, output)
    if trainer.is_world_process_zero():
        if checkpoint is None:
            forget_checkpoints(output)
        remember_run(config, fingerprint, output)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        kept = last_checkpoint(output)
        logger.info(
            "the last whole checkpoint is %s" if kept else "there is no checkpoint%s", kept or ""
        )
        raise
    return write_final(trainer, output / "final")


def _check_writable(folder: Path) -> None:
    """Refuse at once what would be noticed at the first checkpoint."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run.output_dir must be a folder that can be written to, got {str(folder)!r}"
        )


def sft(config: TrainingConfig) -> Path:
    """`train` for the stage that learns chats."""
    if config.stage != "sft":
        raise ConfigError(f"stage must be sft for this command, got {config.stage!r}")
    return train(config)


def write_final(trainer: DiffusionTrainer, folder: Path) -> Path:
    """Write the averaged weights in float32; what can be served is checked by loading it.

    All processes call it, for each may have parts of the weights, and the first writes: beside
    the folder at first, so that what stands there is whole.

    Raises:
        RunError: it could not be written; the last checkpoint is named.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if trainer.is_world_process_zero():  # a run may have been killed here
        shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_all(trainer, partial)
        if trainer.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = last_checkpoint(folder.parent)
        raise RunError(
            f"{folder} could not be written ({' '.join(str(error).split())}); "
            f"the same command goes on from {kept}"
        ) from error
    return folder


def _write_all(trainer: DiffusionTrainer, folder: Path) -> None:
    config = trainer.config
    if config.diffusion.objective == "causal":
        network, weights = averaged_network(trainer)
        if not trainer.is_world_process_zero():
            return
        network.config.training_objective = "causal"  # so that `eval` knows what to score
        network.save_pretrained(str(folder), state_dict=weights)
        trainer.processing_class.save_pretrained(str(folder))  # type: ignore[union-attr]
        return
    export_average(trainer, folder)
    if not trainer.is_world_process_zero():
        return
    check_folder(folder)
    write_figures(folder, run_figures(trainer))
    write_card(folder, config.run.output_dir.rstrip("/").rsplit("/", 1)[-1])


def export_average(trainer: DiffusionTrainer, folder: Path) -> Path:
    """Write the averaged weights in float32 as a folder that can be served.

    All processes call it, and the first writes.
    """
    config = trainer.config
    network, weights = averaged_network(trainer)
    if not trainer.is_world_process_zero():
        return folder
    return export_folder(
        folder,
        network,
        weights,
        trainer.processing_class,
        config.diffusion.objective,
        config.diffusion.block_lengths,
        dtype=torch.float32,
        can_edit=config.diffusion.edit_stage_start is not None,
        logit_shift=config.model.logit_shift,
    )


def averaged_network(trainer: DiffusionTrainer) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The network and its averaged float32 weights, adapters merged into what they adapt."""
    network = trainer._denoiser().network
    average = trainer.averaged_state()
    if not has_adapters(network):
        return network, average
    merged = copy.deepcopy(network)
    nn.Module.float(merged)  # PreTrainedModel.float has no types
    merged.load_state_dict(average, strict=False)
    merge_adapters(merged)
    return merged, {name: weight.detach() for name, weight in merged.named_parameters()}
