"""A plain sampler, to look at a model beside its training. The engine is the fast one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusiongpt.training.denoiser import Denoiser


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 0.7,
    seed: int = 0,
) -> list[int]:
    """Fill the canvas after `prompt`, block by block, one random position of the block a step.

    A full-canvas model is one block. Ends at the first stop id, which is not returned.
    """
    denoiser.eval()
    generator = torch.Generator().manual_seed(seed)
    total = len(prompt) + max_new_tokens
    block = total if denoiser.objective == "masked" else denoiser.block_length
    total = -(-total // block) * block
    ids = torch.full((1, total), denoiser.mask_token_id)
    ids[0, : len(prompt)] = torch.tensor(list(prompt))
    for start in range(len(prompt) // block * block, total, block):
        first = max(start, len(prompt))
        order = torch.randperm(start + block - first, generator=generator) + first
        for position in order.tolist():
            logits = canvas_logits(denoiser, ids[:, : start + block])[0, position]
            probabilities = (logits / max(temperature, 1e-4)).softmax(-1)
            ids[0, position] = torch.multinomial(probabilities, 1, generator=generator)
        written = ids[0, first : start + block].tolist()
        ends = [index for index, token in enumerate(written) if token in stop_ids]
        if ends:
            return [int(x) for x in ids[0, len(prompt) : first + ends[0]]]
    return [int(x) for x in ids[0, len(prompt) :]]


def canvas_logits(denoiser: Denoiser, ids: Tensor) -> Tensor:
    """Logits (B, L, V) of a canvas in one pass, never-emitted ids at minus infinity."""
    hidden = denoiser.canvas_hidden(ids, torch.ones_like(ids))
    return denoiser.head(hidden).float().index_fill(-1, denoiser.banned, -torch.inf)
