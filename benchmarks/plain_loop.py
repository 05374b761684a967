"""The loop that the engine is measured against: masked diffusion sampling as it is usually written.

Float32, one request at a time, the whole canvas through the network at every step, logits and a
draw for every position, then the ancestral transition (MDLM, arXiv 2406.07524, eq. 7).
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ModernBertForMaskedLM


class PlainLoop:
    """Samples by the plain loop.

    Args:
        folder: a full-canvas ModernBERT.
        mask_id: of the mask token. banned: ids that are never emitted. device: cpu or cuda.
    """

    def __init__(self, folder: Path, mask_id: int, banned: list[int], device: str = "cpu") -> None:
        network = ModernBertForMaskedLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.device = device
        self.network = network.eval().to(device)
        self.mask_id = mask_id
        self.banned = torch.tensor(banned, device=device)

    @torch.no_grad()
    def generate(self, prompt: list[int], length: int, steps: int, seed: int) -> list[int]:
        """`length` tokens after the prompt in `steps` equal intervals of time."""
        generator = torch.Generator(self.device).manual_seed(seed)
        ids = torch.full((1, len(prompt) + length), self.mask_id, device=self.device)
        ids[0, : len(prompt)] = torch.tensor(prompt)
        attention_mask = torch.ones_like(ids)
        for step in range(steps):
            logits = self.network(input_ids=ids, attention_mask=attention_mask).logits
            logits[..., self.banned] = -torch.inf
            probabilities = torch.softmax(logits, dim=-1)
            drawn = torch.multinomial(probabilities[0], 1, generator=generator)[:, 0]
            time, next_time = 1 - step / steps, 1 - (step + 1) / steps
            coins = torch.rand(ids.shape, generator=generator, device=self.device)
            unmask = (ids == self.mask_id) & (coins < (time - next_time) / time)
            ids = torch.where(unmask, drawn[None], ids)
        return [int(token) for token in ids[0, len(prompt) :]]
