"""Every class of the table against its own forward pass, and alone against in company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from diffusiongpt.engine.architectures import ARCHITECTURES, DECODERS, describe_known
from diffusiongpt.engine.attention import PACKED_ATTENTION
from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.families import detect_family
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.model import LoadedModel

from tiny_models import edit_config
from tiny_networks import tiny_network

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
BLOCK_LENGTH = 4
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0],
    "long_factor": [2.0, 2.0],
    "original_max_position_embeddings": 64,
}
SECTION = {
    "version": 1,
    "mask_token_id": 5,
    "logit_shift": False,
    "stop_token_ids": [2],
    "never_emit_token_ids": [0, 1, 5],
    "sampler": {"policy": "entropy_bound"},
}


def write(folder: Path, network: PreTrainedModel, block_length: int | None) -> Path:
    network.save_pretrained(folder)
    attention = "bidirectional" if block_length is None else "block_causal"
    section = {**SECTION, "attention": attention, "block_length": block_length}
    return edit_config(folder, diffusion=section)


def ids_of(length: int) -> Tensor:
    return torch.randint(6, 250, (length,), generator=torch.Generator().manual_seed(length))


def backbone(model: LoadedModel, ids: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
    return model.head(model.backbone(ids[None], positions[None], plan))


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_class_gives_the_logits_of_its_own_forward_pass(name: str, tmp_path: Path) -> None:
    """Its own is causal in a decoder, which is blocks of one token."""
    network = tiny_network(name)
    blocks = 1 if name in DECODERS else None
    model = load_model(write(tmp_path, network, blocks), dtype="float32")
    network.set_attn_implementation("eager")
    one, other = ids_of(23), ids_of(12)
    alone = [network(input_ids=ids[None]).logits[0] for ids in (one, other)]
    torch.testing.assert_close(model.logits(one.tolist()), alone[0], **TOLERANCE)
    positions = torch.cat([torch.arange(23), torch.arange(12)])
    together = backbone(model, torch.cat([one, other]), positions, model.plan(23, 12))
    torch.testing.assert_close(together, torch.cat(alone), **TOLERANCE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_one_after_another_give_the_logits_of_the_whole_canvas(
    name: str, tmp_path: Path
) -> None:
    """The keys that are kept are those of the right layer."""
    model = load_model(write(tmp_path, tiny_network(name), BLOCK_LENGTH), dtype="float32")
    ids, cache = ids_of(12), SlotCache(12)
    whole = model.logits(ids.tolist())
    for start in range(0, 12, BLOCK_LENGTH):
        part = slice(start, start + BLOCK_LENGTH)
        plan = AttentionPlan(lengths=(BLOCK_LENGTH,), block_length=BLOCK_LENGTH, caches=(cache,))
        logits = backbone(model, ids[part], torch.arange(12)[part], plan)
        torch.testing.assert_close(logits, whole[part], **TOLERANCE)
        cache.length += BLOCK_LENGTH


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertForMaskedLM"])
def test_a_class_needs_a_section(name: str) -> None:
    kind = "a causal language model and not" if name in DECODERS else "a masked language model and"
    with pytest.raises(LoadError, match=f"{name}, which is {kind}"):
        detect_family({"architectures": [name]})


def test_a_class_that_is_not_listed_is_refused_with_those_that_are() -> None:
    with pytest.raises(LoadError, match="is a Gemma2ForCausalLM, which this engine") as refusal:
        detect_family({"architectures": ["Gemma2ForCausalLM"], "diffusion": SECTION})
    assert describe_known() in str(refusal.value)
    assert describe_known().startswith("a masked language model (ModernBert, Bert, Camembert,")


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("Gemma3ForCausalLM", {"final_logit_softcapping": 30.0}, "must be null or false, got 30.0"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "null or false, got True"),
        ("Phi3ForCausalLM", {"rope_parameters": LONGROPE}, "rope_type longrope makes an answer"),
    ],
)
def test_a_config_that_asks_for_more_is_refused(
    name: str, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, tiny_network(name, **changes), BLOCK_LENGTH)
    with pytest.raises(LoadError, match=f"is a {name} that cannot be run: .*{sentence}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "argument"), [("Gemma2ForCausalLM", "softcap"), ("GptOssForCausalLM", "s_aux")]
)
def test_attention_refuses_what_it_would_leave_out(name: str, argument: str) -> None:
    network = tiny_network(name)
    network.set_attn_implementation(PACKED_ATTENTION)
    with pytest.raises(ValueError, match=f"attention has no {argument}, which a layer"):
        network(ids_of(8)[None], attention_plan=AttentionPlan(lengths=(8,)))


def test_rows_of_a_padded_position_table_are_left_out_of_the_context(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, tiny_network("RobertaForMaskedLM"), None), dtype="float32")
    assert model.config.max_position_embeddings == 128
    assert model.context_length == 126
    model.logits([7] * 126)
