"""What is said before a run: what it will cost, or one of its batches. Nothing is kept."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import default_data_collator

from diffusiongpt.training.config import TrainingConfig
from diffusiongpt.training.data import RowDataset
from diffusiongpt.training.dry_run import dry_run
from diffusiongpt.training.explain import explain_batch
from diffusiongpt.training.folders import load_tokenizer
from diffusiongpt.training.run import check_enough, load_rows, make_trainer
from diffusiongpt.training.trainer import DiffusionTrainer


def report_cost(config: TrainingConfig) -> Iterator[str]:
    """What a run will cost, line by line; nothing is written."""
    with _written_nowhere(config) as alone:
        trainer = make_trainer(alone)
    yield from dry_run(trainer)


def show_batch(config: TrainingConfig, step: int) -> Iterator[str]:
    """What step `step` reads first, as it corrupts it, line by line; no network is made."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    dataset = load_rows(config, tokenizer)
    if isinstance(dataset, RowDataset):
        check_enough(len(dataset), config.run, 1)
    no_network: Any = nn.Linear(1, 1)
    with _written_nowhere(config) as alone:
        reader = DiffusionTrainer(
            no_network, alone, train_dataset=dataset, data_collator=default_data_collator
        )
        batch = reader.batch_at(step)
    yield from explain_batch(config, batch, tokenizer, step)


@contextmanager
def _written_nowhere(config: TrainingConfig) -> Iterator[TrainingConfig]:
    """The configuration with an output folder that is gone afterwards: Trainers make theirs."""
    with tempfile.TemporaryDirectory() as folder:
        run = dataclasses.replace(config.run, output_dir=folder, report_to="none")
        yield dataclasses.replace(config, run=run)
