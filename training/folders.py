"""Exported folders: read back as a denoiser, or written anew for serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from diffusiongpt.training.backbones import load_backbone
from diffusiongpt.training.card import read_figures, write_card, write_figures
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.denoiser import Denoiser
from diffusiongpt.training.export import check_folder, export_folder
from diffusiongpt.training.tokenizer import DELETE, IM_START, MASK, PAD, special_ids


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder, checked for our special tokens."""
    if not folder:
        raise ConfigError("data.tokenizer has no value; pass --tokenizer FOLDER")
    if not (Path(folder) / "tokenizer.json").is_file():
        raise ConfigError(f"there is no tokenizer.json in {folder!r}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special_ids(tokenizer)
    return tokenizer


def load_denoiser(folder: str | Path, block_length: int | None = None) -> tuple[Denoiser, Any]:
    """An exported folder as a float32 denoiser, and its tokenizer.

    Args:
        block_length: one of those that it was trained with, 0 for the whole canvas; its own by
            default.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"there is no model folder {str(folder)!r}")
    network = load_backbone(folder)
    section = getattr(network.config, "diffusion", None)
    if section is None and getattr(network.config, "training_objective", None) == "causal":
        return _causal_denoiser(network, folder)
    if section is None:
        raise ConfigError(f"{folder} has no diffusion section in its config.json")
    lengths = block_lengths_of(section)
    block = lengths[0] if block_length is None else block_length
    if block not in lengths:
        raise ConfigError(
            f"block_length must be one of {', '.join(map(str, lengths))}, as {folder} was "
            f"trained, got {block}"
        )
    denoiser = Denoiser(
        network,
        "block" if block else "masked",
        block or 1,
        section["mask_token_id"],
        section["never_emit_token_ids"],
        logit_shift=section["logit_shift"],
    )
    return denoiser.eval(), load_tokenizer(str(folder))


def _causal_denoiser(network: PreTrainedModel, folder: str | Path) -> tuple[Denoiser, Any]:
    tokenizer = load_tokenizer(str(folder))
    special = special_ids(tokenizer)
    banned = [special[token] for token in (PAD, IM_START, MASK, DELETE)]
    return Denoiser(network, "causal", 1, special[MASK], banned).eval(), tokenizer


def block_lengths_of(section: Mapping[str, Any]) -> list[int]:
    """The block lengths of a `diffusion` section, the model's own first; 0 is the whole canvas."""
    return section.get("block_lengths") or [section["block_length"] or 0]


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
    section = getattr(denoiser.network.config, "diffusion", None)
    if section is None:
        raise ConfigError(
            f"{source} is a next-token model, which cannot be served; train it on with "
            "--init_from and the objective block or masked"
        )
    out = export_folder(
        folder,
        denoiser.network,
        {name.removeprefix("network."): weight for name, weight in denoiser.named_parameters()},
        tokenizer,
        denoiser.objective,
        block_lengths_of(section),
        torch.bfloat16 if dtype == "bfloat16" else torch.float32,
        sampler or section["sampler"],
        can_edit=section.get("can_edit", False),
        logit_shift=denoiser.logit_shift,
    )
    check_folder(out)
    write_figures(out, read_figures(source))
    write_card(out)
    return out
