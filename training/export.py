"""Weights in, a folder that the engine loads out: safetensors, config.json, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from diffusiongpt.engine.families import detect_family
from diffusiongpt.training.backbones import architecture_of
from diffusiongpt.training.tokenizer import (
    DELETE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    MASK,
    PAD,
    save_tokenizer,
    special_ids,
)

# What `transformers.pipeline(..., trust_remote_code=True)` looks for in a folder. The engine
# itself never runs a line of a folder's code.
CUSTOM_PIPELINES = {
    "text-diffusion": {
        "impl": "pipeline.TextDiffusionPipeline",
        "pt": ["AutoModelForMaskedLM"],
        "type": "text",
    }
}
PIPELINE_FILE = '''"""The pipeline of this model: pip install diffusiongpt."""

from diffusiongpt.engine.pipeline import TextDiffusionPipeline

__all__ = ["TextDiffusionPipeline"]
'''

SAMPLER_DEFAULTS: dict[str, Any] = {
    "policy": "entropy_bound",
    "entropy_bound": 0.5,
    "temperature": 0.7,
}


def diffusion_section(
    objective: str,
    block_length: int | Sequence[int],
    special: Mapping[str, int],
    sampler: Mapping[str, Any],
    can_edit: bool = False,
    logit_shift: bool = False,
) -> dict[str, Any]:
    """The `diffusion` section of config.json, by which the engine knows how to sample.

    Of several block lengths the first is the model's own. `can_edit` says that the model was
    trained on visible tokens that may be wrong, `logit_shift` that a position predicts the next.
    """
    if objective not in ("block", "masked"):
        raise ValueError(
            f"only the objectives block and masked can be exported to be served, got {objective!r}"
        )
    block = objective == "block"
    lengths = [block_length] if isinstance(block_length, int) else list(block_length)
    mixture = {"block_lengths": lengths} if block and len(lengths) > 1 else {}
    return {
        "version": 1,
        "mask_token_id": special[MASK],
        "attention": "block_causal" if block else "bidirectional",
        "block_length": lengths[0] if block else None,
        **mixture,
        "logit_shift": logit_shift,
        "stop_token_ids": [special[IM_END], special[END_OF_TEXT]],
        "never_emit_token_ids": [special[token] for token in (MASK, PAD, DELETE, IM_START)],
        "can_edit": can_edit,
        "sampler": dict(sampler),
    }


def export_folder(
    folder: str | Path,
    network: PreTrainedModel,
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    objective: str,
    block_length: int | Sequence[int],
    dtype: torch.dtype = torch.bfloat16,
    sampler: Mapping[str, Any] | None = None,
    can_edit: bool = False,
    logit_shift: bool = False,
) -> Path:
    """Write `weights` (the average, under the network's names) as a folder that can be served.

    Raises:
        LoadError: it could not be served; nothing is written.
    """
    out = Path(folder)
    section = diffusion_section(
        objective,
        block_length,
        special_ids(tokenizer),
        sampler or SAMPLER_DEFAULTS,
        can_edit,
        logit_shift,
    )
    config = network.config.to_diff_dict()
    config.pop("_attn_implementation_autoset", None)
    config.update(
        architectures=[type(network).__name__],
        model_type=network.config.model_type,
        dtype=str(dtype).removeprefix("torch."),
        diffusion=section,
        custom_pipelines=CUSTOM_PIPELINES,
    )
    detect_family(config, where=str(out))
    out.mkdir(parents=True, exist_ok=True)
    tied = {name: value.to(dtype).contiguous().clone() for name, value in weights.items()}
    save_file(tied, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "pipeline.py").write_text(PIPELINE_FILE, encoding="utf-8")
    save_tokenizer(tokenizer, out)
    return out


def check_folder(folder: str | Path) -> None:
    """Load the folder as a stranger would; missing or unexpected weights are an error."""
    native: Any = getattr(transformers, architecture_of(folder))
    loaded = native.from_pretrained(str(folder), output_loading_info=True)
    report = loaded[1]
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise ValueError(f"{folder} has {kind}: {sorted(report[kind])}")
