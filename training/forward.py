"""The corruption of a batch under a configuration: masks, and in the edit stage wrong tokens.

A function of the configuration, the step and the rows' places in the global batch: the same with
any number of workers, processes and accumulation steps, and after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusiongpt.training.config import TrainingConfig
from diffusiongpt.training.edits import corrupt_visible, corruption_at, draw_edits, windows_of
from diffusiongpt.training.loss import LOSS_NORMS
from diffusiongpt.training.noise import block_length_at, draw_corruption
from diffusiongpt.training.tokenizer import DELETE, MASK, special_ids


@dataclass(frozen=True, slots=True)
class EditTokens:
    """The mask, `<|delete|>` and the (R,) ids that a random token may be."""

    mask: int
    delete: int
    ordinary: Tensor


def edit_tokens_of(tokenizer: Any) -> EditTokens:
    """The ids of a tokenizer; special and added tokens are never random replacements."""
    special = special_ids(tokenizer)
    never = {*special.values(), *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [index for index in range(len(tokenizer)) if index not in never]
    return EditTokens(special[MASK], special[DELETE], torch.tensor(ordinary))


def corruption_of(
    inputs: dict[str, Tensor],
    config: TrainingConfig,
    ids: EditTokens,
    step: int,
    first_row: int,
    num_rows: int,
) -> dict[str, Any]:
    """What `Denoiser.forward` takes beside `tokens`, `segments` and `maskable` (B, L).

    Args:
        first_row, num_rows: the place of the batch in the global batch of a step.
    """
    diffusion, maskable = config.diffusion, inputs["maskable"]
    batch, length = maskable.shape
    block_length = 0
    if diffusion.objective != "masked":
        block_length = block_length_at(step, diffusion.block_lengths, config.run.seed)
    share = LOSS_NORMS[diffusion.loss_norm](maskable, inputs["segments"]).share
    masked, weights = draw_corruption(
        maskable,
        block_length or length,
        diffusion.noise,
        config.run.seed,
        step,
        first_row,
        num_rows,
        schedule=diffusion.schedule,
        time_sampling=diffusion.time_sampling,
        num_steps=diffusion.num_diffusion_steps,
        time_weighting=diffusion.time_loss_weighting,
    )
    probability = corruption_at(
        step,
        config.run.max_steps,
        diffusion.edit_stage_start,
        diffusion.corruption_prob,
        diffusion.anneal_corruption,
    )
    if probability is None:  # what is visible is a target of the causal objective alone
        drawn = {"masked": masked, "weights": weights * share}
        return {**drawn, "visible_weight": share, "block_length": block_length}
    draws = draw_edits(config.run.seed, step, first_row, batch, num_rows, length)
    corruption = corrupt_visible(
        inputs["tokens"],
        maskable,
        windows_of(inputs["segments"], block_length or None),
        masked,
        weights,
        draws.to(maskable.device),
        probability,
        ids.mask,
        ids.ordinary.to(maskable.device),
        ids.delete if diffusion.insertion_corruption else None,
        diffusion.deletion_corruption,
    )
    return {
        **corruption._asdict(),
        "weights": corruption.weights * share,
        "visible_weight": diffusion.edit_loss_weight * share,
        "block_length": block_length,
    }
