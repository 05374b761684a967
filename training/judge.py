"""Exported folders judged on files: bounds, exact likelihoods, baselines, what they write."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusiongpt.engine.architectures import context_length_of
from diffusiongpt.training.config import ConfigError, DataConfig
from diffusiongpt.training.data import RowDataset, build_dataset
from diffusiongpt.training.denoiser import Denoiser
from diffusiongpt.training.dry_run import count_parameters
from diffusiongpt.training.evaluate import (
    Bound,
    evaluate_bound,
    score_rows,
    token_byte_lengths,
    with_error,
)
from diffusiongpt.training.folders import block_lengths_of, load_denoiser, load_tokenizer
from diffusiongpt.training.generation import (
    CURVE_HEADER,
    load_engine,
    measure_endings,
    measure_infilling,
    quality_curve,
    stop_ids_of,
)
from diffusiongpt.training.ngram import NgramModel
from diffusiongpt.training.pieces import load_store
from diffusiongpt.training.plot import draw_curve
from diffusiongpt.training.sources import open_records
from diffusiongpt.training.tokenizer import END_OF_TEXT, IM_END, special_ids


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How texts become rows: what decides which tokens are judged, and after which others."""

    length: int
    alignment: int
    to_edge: bool


def layout_of(denoiser: Denoiser) -> RowLayout:
    """The rows of an exported folder; the same for every block length that it serves."""
    config = denoiser.network.config
    section = getattr(config, "diffusion", None)
    longest = max(block_lengths_of(section)) if section else 0
    return RowLayout(context_length_of(config), longest or 1, bool(longest))


def evaluation_rows(
    name: str, data: DataConfig, layout: RowLayout, tokenizer: Any, seed: int = 0
) -> RowDataset:
    """One file as rows: chats as prompts and answers, texts as texts."""
    first = next(open_records(name, data.data_dir), {})
    stage = "sft" if "messages" in first else "pretrain"
    only = dataclasses.replace(
        data,
        mix={name: 1.0},
        generated_chats=0,
        story_requests=0.0,
        max_seq_length=layout.length,
    )
    objective = "block" if layout.to_edge else "masked"
    return build_dataset(only, stage, objective, layout.alignment, tokenizer, seed)


def bound_on_rows(
    denoiser: Denoiser,
    rows: RowDataset,
    tokenizer: Any,
    draws: int = 16,
    max_rows: int | None = None,
    seed: int = 0,
) -> Bound:
    """The bound of a denoiser on rows, or the exact likelihood of a next-token model."""
    special = special_ids(tokenizer)
    return evaluate_bound(
        denoiser,
        rows,
        (special[END_OF_TEXT], special[IM_END]),
        token_byte_lengths(tokenizer),
        draws=draws,
        max_rows=max_rows,
        seed=seed,
    )


def evaluate(
    folder: str | Path,
    files: Sequence[str],
    data: DataConfig,
    draws: int = 16,
    max_rows: int | None = None,
    seed: int = 0,
    block_length: int | None = None,
) -> dict[str, Bound]:
    """The bound of an exported folder on each file; `block_length` as in `load_denoiser`."""
    denoiser, tokenizer = load_denoiser(folder, block_length)
    layout = layout_of(denoiser)
    return {
        name: bound_on_rows(
            denoiser,
            evaluation_rows(name, data, layout, tokenizer, seed),
            tokenizer,
            draws,
            max_rows,
            seed,
        )
        for name in files
    }


def compare(
    folders: Sequence[str],
    files: Sequence[str],
    data: DataConfig,
    draws: int = 16,
    max_rows: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """A table of folders on the same rows, those of the first: bounds, and exact likelihoods.

    A model of several block lengths has a line for each. Rows are as long as the shortest context.

    Raises:
        ConfigError: the folders' tokenizers differ, so that their tokens cannot be compared.
    """
    models = [(folder, *_variants(folder)) for folder in folders]
    tokenizer = models[0][2]
    for folder, _, other in models[1:]:
        if other.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"{folder} has another tokenizer than {folders[0]}, so nats per token of the two "
                "cannot be compared"
            )
    layouts = [layout_of(denoisers[0]) for _, denoisers, _ in models]
    layout = dataclasses.replace(layouts[0], length=min(each.length for each in layouts))
    yield COMPARE_HEADER
    for name in files:
        rows = evaluation_rows(name, data, layout, tokenizer, seed)
        for folder, denoisers, _ in models:
            for denoiser in denoisers:
                bound = bound_on_rows(denoiser, rows, tokenizer, draws, max_rows, seed)
                yield _line(name, folder, denoiser, bound)


COMPARE_HEADER = (
    f"{'data':24} {'model':32} {'objective':10} {'parameters':>12} {'nats/token':>18} "
    f"{'bits/byte':>18}"
)


def _variants(folder: str) -> tuple[list[Denoiser], Any]:
    """A folder at each of its block lengths."""
    own, tokenizer = load_denoiser(folder)
    section = getattr(own.network.config, "diffusion", None)
    others = block_lengths_of(section)[1:] if section else []
    return [own, *(load_denoiser(folder, length)[0] for length in others)], tokenizer


def _line(name: str, folder: str, denoiser: Denoiser, bound: Bound) -> str:
    objective = denoiser.objective
    if objective == "block":
        objective += f" {denoiser.block_length}"
    bits = "-"
    if bound.bits_per_byte is not None:
        bits = with_error(bound.bits_per_byte, bound.bits_per_byte_error)
    sign = "=" if objective == "causal" else "<="
    nats = f"{sign} {with_error(bound.nats_per_token, bound.standard_error)}"
    size = f"{count_parameters(denoiser.network):,}"
    return f"{name:24} {folder:32} {objective:10} {size:>12} {nats:>18} {bits:>18}"


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
    layout, lengths = layout_of(denoiser), token_byte_lengths(tokenizer)
    return {
        name: score_rows(
            model, evaluation_rows(name, data, layout, tokenizer), endings, lengths, max_rows
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
    plot: str | None = None,
    block_length: int | None = None,
) -> Iterator[str]:
    """Lines on what a folder writes; `wishes` are of endings, curve and infill.

    The curve needs `fit`, the names that the judging n-gram learns; `plot` names its PNG.
    `block_length` is what answers are written by.
    """
    if "curve" in wishes and not fit:
        raise ConfigError("--curve needs --fit FILE...: what the judging n-gram learns")
    if plot is not None and ("curve" not in wishes or len(files) > 1):
        raise ConfigError(f"--plot draws the --curve of one file, got {', '.join(files)}")
    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"there is no model folder {str(folder)!r}")
    tokenizer, engine = load_tokenizer(str(folder)), load_engine(folder)
    stop, where = stop_ids_of(folder), data.data_dir
    for name in files:
        if "endings" in wishes:
            shares = measure_endings(
                engine,
                tokenizer,
                stop,
                name,
                where,
                max_tokens,
                count,
                seed,
                block_length=block_length,
            )
            yield f"{name}: endings: {shares}"
        if "infill" in wishes:
            score = measure_infilling(engine, tokenizer, name, where, count=count, seed=seed)
            yield f"{name}: infill: {score}"
        if "curve" in wishes:
            model = fit_ngram(tokenizer, fit, data)
            yield f"{name}: {count} texts continued by {max_tokens} tokens"
            yield CURVE_HEADER
            points = []
            for point in quality_curve(
                engine, tokenizer, stop, model, name, where, max_tokens, count, seed=seed
            ):
                points.append(point)
                yield str(point)
            if plot is not None:
                draw_curve(points, plot, f"{folder} on {name}")
                yield f"wrote {plot}"
