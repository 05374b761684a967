"""What is trained is what is served, for every class that the engine runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusiongpt.engine.architectures import ARCHITECTURES, context_length_of
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.native import facts_of, layers_of, matrices_of
from diffusiongpt.training.backbones import (
    add_adapters,
    fit_positions,
    load_backbone,
    merge_adapters,
)
from diffusiongpt.training.config import ConfigError, ModelConfig
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


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_adapters_are_on_every_matrix_of_the_layers_and_on_no_other(name, tmp_path):
    pytest.importorskip("peft")
    tiny_network(name).save_pretrained(tmp_path)
    network = load_backbone(tmp_path).eval()
    ids = torch.arange(6, 14)[None]
    with torch.no_grad():
        before = network(input_ids=ids).logits
    matrices = {name for name, _ in matrices_of(layers_of(network))}
    add_adapters(network, ModelConfig(lora_rank=2, init_from=str(tmp_path)))
    adapted = {
        name.partition(".lora_A")[0] for name, _ in network.named_parameters() if "A." in name
    }
    path = next(iter(adapted)).partition(facts_of(network).layers)[0] + facts_of(network).layers
    assert {name.removeprefix(f"{path}.") for name in adapted} == matrices
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
        adapted_logits = network(input_ids=ids).logits
        merge_adapters(network)
        assert not torch.allclose(adapted_logits, before, atol=0.1)
        torch.testing.assert_close(network(input_ids=ids).logits, adapted_logits, **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "most"),
    [("BertForMaskedLM", 128), ("GPT2LMHeadModel", 128), ("RobertaForMaskedLM", 126)],
)
def test_learned_positions_are_cut_to_the_rows_and_never_stretched(name, most, tmp_path):
    tiny_network(name).save_pretrained(tmp_path)
    network = load_backbone(tmp_path).eval()
    ids = torch.arange(6, 22)[None]
    with pytest.raises(ConfigError, match=rf"must be at most {most}, .* got {most + 1}"):
        fit_positions(network, most + 1)
    with torch.no_grad():
        before = network(input_ids=ids).logits
        fit_positions(network, 16)
        torch.testing.assert_close(network(input_ids=ids).logits, before)
    assert context_length_of(network.config) == 16
    network.save_pretrained(tmp_path / "cut")
    assert context_length_of(load_backbone(tmp_path / "cut").config) == 16
