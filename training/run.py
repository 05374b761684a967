"""The commands: train a tokenizer, pre-train, fine-tune, evaluate, export."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, default_data_collator
from transformers.trainer_utils import get_last_checkpoint

from diffusiongpt.training.backbones import has_adapters, load_backbone, merge_adapters
from diffusiongpt.training.callbacks import ClockCallback, ProgressCallback
from diffusiongpt.training.config import ConfigError, DataConfig, TrainingConfig, to_mapping
from diffusiongpt.training.data import (
    RowDataset,
    build_dataset,
    load_store,
)
from diffusiongpt.training.denoiser import Denoiser, build_network
from diffusiongpt.training.dry_run import count_parameters, dry_run, with_ratio
from diffusiongpt.training.evaluate import Bound, evaluate_bound, score_rows, token_byte_lengths
from diffusiongpt.training.explain import explain_batch
from diffusiongpt.training.export import check_folder, export_folder
from diffusiongpt.training.generation import (
    CURVE_HEADER,
    load_engine,
    measure_endings,
    measure_infilling,
    quality_curve,
    stop_ids_of,
)
from diffusiongpt.training.ngram import NgramModel
from diffusiongpt.training.sources import open_records
from diffusiongpt.training.tokenizer import (
    DELETE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    MASK,
    PAD,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)
from diffusiongpt.training.trainer import DiffusionTrainer

logger = logging.getLogger(__name__)


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder, checked for our special tokens."""
    if not folder:
        raise ConfigError("data.tokenizer has no value; pass --tokenizer FOLDER")
    if not (Path(folder) / "tokenizer.json").is_file():
        raise ConfigError(f"there is no tokenizer.json in {folder!r}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special_ids(tokenizer)
    return tokenizer


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

    save_tokenizer(train_tokenizer(texts(), vocab_size, max_length), folder)
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


def load_rows(config: TrainingConfig, tokenizer: Any) -> RowDataset:
    """The rows that a configuration trains on."""
    return build_dataset(
        config.data,
        config.stage,
        config.diffusion.objective,
        config.block_length,
        tokenizer,
        config.run.seed,
    )


def make_trainer(config: TrainingConfig) -> DiffusionTrainer:
    """Everything a run needs, ready to train."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    dataset = load_rows(config, tokenizer)
    logger.info("%d rows of %d tokens", len(dataset), config.data.max_seq_length)
    denoiser = build_denoiser(config, tokenizer)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = with_ratio(config, count_parameters(denoiser.network), processes)
    trainer = DiffusionTrainer(
        denoiser,
        config,
        train_dataset=dataset,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    run = config.run
    tokens = run.batch_size * run.gradient_accumulation_steps * config.data.max_seq_length
    trainer.add_callback(ClockCallback(trainer.clock, run.save_every_minutes))
    trainer.add_callback(ProgressCallback(trainer.clock, tokens, run.progress_bar))
    return trainer


def report_cost(config: TrainingConfig) -> Iterator[str]:
    """What a run will cost, line by line; nothing is written."""
    yield from dry_run(make_trainer(config))


def show_batch(config: TrainingConfig, step: int) -> Iterator[str]:
    """One batch as step `step` corrupts it, line by line; no network is made."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    yield from explain_batch(config, load_rows(config, tokenizer), tokenizer, step)


def train(config: TrainingConfig) -> Path:
    """Run a stage to its end (or resume it) and write the averaged weights into `final`."""
    trainer = make_trainer(config)
    output = Path(config.run.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(to_mapping(config), sort_keys=False))
    find_last: Callable[[str], str | None] = get_last_checkpoint
    checkpoint = find_last(str(output)) if config.run.resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    return write_final(trainer, output / "final")


def sft(config: TrainingConfig) -> Path:
    """`train` for the stage that learns chats."""
    if config.stage != "sft":
        raise ConfigError(f"stage must be sft for this command, got {config.stage!r}")
    return train(config)


def load_denoiser(folder: str | Path) -> tuple[Denoiser, Any]:
    """An exported folder as a float32 denoiser, and its tokenizer."""
    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"there is no model folder {str(folder)!r}")
    network = load_backbone(folder)
    section = getattr(network.config, "diffusion", None)
    if section is None:
        raise ConfigError(f"{folder} has no diffusion section in its config.json")
    denoiser = Denoiser(
        network,
        "block" if section["attention"] == "block_causal" else "masked",
        section["block_length"] or 1,
        section["mask_token_id"],
        section["never_emit_token_ids"],
        logit_shift=section["logit_shift"],
    )
    return denoiser.eval(), load_tokenizer(str(folder))


def evaluation_rows(
    name: str, data: DataConfig, denoiser: Denoiser, tokenizer: Any, seed: int
) -> RowDataset:
    """One file as rows: chats as prompts and answers, texts as texts."""
    first = next(open_records(name, data.data_dir), {})
    stage = "sft" if "messages" in first else "pretrain"
    only = dataclasses.replace(data, mix={name: 1.0}, generated_chats=0, story_requests=0.0)
    return build_dataset(only, stage, denoiser.objective, denoiser.block_length, tokenizer, seed)


def evaluate(
    folder: str | Path,
    files: Sequence[str],
    data: DataConfig,
    draws: int = 16,
    max_rows: int | None = None,
    seed: int = 0,
) -> dict[str, Bound]:
    """The bound of an exported folder on each file."""
    denoiser, tokenizer = load_denoiser(folder)
    special = special_ids(tokenizer)
    data = dataclasses.replace(data, max_seq_length=denoiser.network.config.max_position_embeddings)
    return {
        name: evaluate_bound(
            denoiser,
            evaluation_rows(name, data, denoiser, tokenizer, seed),
            (special[END_OF_TEXT], special[IM_END]),
            token_byte_lengths(tokenizer),
            draws=draws,
            max_rows=max_rows,
            seed=seed,
        )
        for name in files
    }


def ngram_baseline(
    folder: str | Path,
    fit: Sequence[str],
    files: Sequence[str],
    data: DataConfig,
    order: int = 5,
    max_rows: int | None = None,
) -> dict[str, Bound]:
    """An n-gram with the folder's tokenizer, fitted on `fit`, on the same rows as `evaluate`."""
    denoiser, tokenizer = load_denoiser(folder)
    special = special_ids(tokenizer)
    endings = (special[END_OF_TEXT], special[IM_END])
    model = fit_ngram(tokenizer, fit, data, order)
    data = dataclasses.replace(data, max_seq_length=denoiser.network.config.max_position_embeddings)
    lengths = token_byte_lengths(tokenizer)
    return {
        name: score_rows(
            model, evaluation_rows(name, data, denoiser, tokenizer, 0), endings, lengths, max_rows
        )
        for name in files
    }


def fit_ngram(tokenizer: Any, fit: Sequence[str], data: DataConfig, order: int = 5) -> NgramModel:
    """An n-gram of the names `fit` under a tokenizer."""
    end = special_ids(tokenizer)[END_OF_TEXT]
    stores = (load_store(name, data, tokenizer, "pretrain") for name in fit)
    known = (np.append(store[index].ids, end) for store in stores for index in range(len(store)))
    return NgramModel(order, len(tokenizer)).fit(known)


def judge_generation(
    folder: str | Path,
    files: Sequence[str],
    data: DataConfig,
    wishes: Collection[str],
    fit: Sequence[str] = (),
    max_tokens: int = 128,
    count: int = 64,
    seed: int = 0,
) -> Iterator[str]:
    """Lines on what a folder writes; `wishes` are of endings, curve and infill.

    The curve needs `fit`, the names that the judging n-gram learns.
    """
    if "curve" in wishes and not fit:
        raise ConfigError("--curve needs --fit FILE...: what the judging n-gram learns")
    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"there is no model folder {str(folder)!r}")
    tokenizer, engine = load_tokenizer(str(folder)), load_engine(folder)
    stop, where = stop_ids_of(folder), data.data_dir
    for name in files:
        if "endings" in wishes:
            shares = measure_endings(engine, tokenizer, stop, name, where, max_tokens, count, seed)
            yield f"{name}: endings: {shares}"
        if "infill" in wishes:
            score = measure_infilling(engine, tokenizer, name, where, count=count, seed=seed)
            yield f"{name}: infill: {score}"
        if "curve" in wishes:
            model = fit_ngram(tokenizer, fit, data)
            yield f"{name}: {count} texts continued by {max_tokens} tokens"
            yield CURVE_HEADER
            for point in quality_curve(
                engine, tokenizer, stop, model, name, where, max_tokens, count, seed=seed
            ):
                yield str(point)


def export(
    source: str | Path,
    folder: str | Path,
    dtype: str = "bfloat16",
    sampler: Mapping[str, Any] | None = None,
) -> Path:
    """A run's `final` folder as one to be served: its weights in `dtype`, its sampler defaults."""
    if dtype not in ("bfloat16", "float32"):
        raise ConfigError(f"dtype must be bfloat16 or float32, got {dtype!r}")
    denoiser, tokenizer = load_denoiser(source)
    section = denoiser.network.config.diffusion
    out = export_folder(
        folder,
        denoiser.network,
        {name.removeprefix("network."): weight for name, weight in denoiser.named_parameters()},
        tokenizer,
        denoiser.objective,
        denoiser.block_length,
        torch.bfloat16 if dtype == "bfloat16" else torch.float32,
        sampler or section["sampler"],
        can_edit=section.get("can_edit", False),
        logit_shift=denoiser.logit_shift,
    )
    check_folder(out)
    return out


def write_final(trainer: DiffusionTrainer, folder: Path) -> Path:
    """Write the averaged weights in float32; what can be served is checked by loading it."""
    config = trainer.config
    network, weights = averaged_network(trainer)
    if config.diffusion.objective == "causal":
        network.save_pretrained(str(folder), state_dict=weights)
        trainer.processing_class.save_pretrained(str(folder))  # type: ignore[union-attr]
        return folder
    export_folder(
        folder,
        network,
        weights,
        trainer.processing_class,
        config.diffusion.objective,
        config.diffusion.block_length,
        dtype=torch.float32,
        can_edit=config.diffusion.edit_stage_start is not None,
        logit_shift=config.model.logit_shift,
    )
    check_folder(folder)
    return folder


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
