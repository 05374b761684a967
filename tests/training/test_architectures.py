"""What is trained is what is served, for every class that the engine runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusiongpt.engine.architectures import ARCHITECTURES
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.native import layers_of
from diffusiongpt.training.backbones import load_backbone
from diffusiongpt.training.denoiser import Denoiser
from diffusiongpt.training.sample import canvas_logits

from tiny_models import edit_config
from tiny_networks import tiny_network

MASK, BLOCK_LENGTH, LENGTH = 5, 4, 16
BANNED = [0, 1, MASK]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def serve(folder: Path, objective: str) -> LoadedModel:
    is_block = objective == "block"
    section = {
        "version": 1,
        "mask_token_id": MASK,
        "attention": "block_causal" if is_block else "bidirectional",
        "block_length": BLOCK_LENGTH if is_block else None,
        "logit_shift": False,
        "stop_token_ids": [2],
        "never_emit_token_ids": BANNED,
    }
    return load_model(edit_config(folder, diffusion=section), dtype="float32")


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_canvas_has_the_same_logits_in_training_and_in_the_engine(name, tmp_path):
    tiny_network(name).save_pretrained(tmp_path)
    network = load_backbone(tmp_path)
    ids = torch.randint(6, 250, (1, LENGTH))
    ids[0, LENGTH - 3 :] = MASK
    for objective in ("masked", "block"):
        served = serve(tmp_path, objective).logits(ids[0].tolist())
        served[:, BANNED] = -torch.inf
        for shift in (False, True):
            denoiser = Denoiser(network, objective, BLOCK_LENGTH, MASK, BANNED, logit_shift=shift)
            expected = torch.cat([served[:1], served[:-1]]) if shift else served
            torch.testing.assert_close(
                canvas_logits(denoiser.eval(), ids)[0], expected, **TOLERANCE
            )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_noisy_block_sees_itself_and_the_clean_ones_before_it(name, tmp_path):
    """The two streams of a step give what canvases give, and every weight gets a gradient."""
    tiny_network(name).save_pretrained(tmp_path)
    denoiser = Denoiser(load_backbone(tmp_path), "block", BLOCK_LENGTH, MASK, BANNED).eval()
    tokens = torch.randint(6, 250, (2, LENGTH))
    segments = torch.ones_like(tokens)
    masked = torch.rand(2, LENGTH) < 0.5
    streams = denoiser.hidden(tokens, segments, masked)
    for start in range(0, LENGTH, BLOCK_LENGTH):
        part = slice(start, start + BLOCK_LENGTH)
        canvas = tokens[:, : part.stop].clone()
        canvas[:, part][masked[:, part]] = MASK
        alone = denoiser.canvas_hidden(canvas, segments[:, : part.stop])
        torch.testing.assert_close(alone[:, part], streams[:, part], **TOLERANCE)
    loss = denoiser(tokens, segments, segments.bool(), masked, torch.ones(2, LENGTH))
    loss.backward()
    weights = dict(layers_of(denoiser.network).named_parameters())
    assert weights
    for name, weight in weights.items():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
