"""Writes tiny random checkpoints in the layout that our trainer exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM, Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE = 97
MASK_TOKEN_ID = 5
STOP_TOKEN_ID = 2
CONTEXT_LENGTH = 128
LOCAL_ATTENTION = 8


def write_modernbert(
    folder: Path,
    *,
    block_length: int | None = None,
    vocab_size: int = VOCAB_SIZE,
    seed: int = 0,
    section: dict[str, Any] | None = None,
) -> Path:
    """A ModernBERT of one global and two local layers, each seeing 4 tokens to either side.

    Args:
        block_length: makes it block-causal. section: fields of the `diffusion` section to change.
    """
    config = ModernBertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        global_attn_every_n_layers=3,
        local_attention=LOCAL_ATTENTION,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        cls_token_id=1,
        eos_token_id=STOP_TOKEN_ID,
        sep_token_id=STOP_TOKEN_ID,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ModernBertForMaskedLM(config).save_pretrained(folder)
    attention = "bidirectional" if block_length is None else "block_causal"
    return _add_section(folder, attention, block_length, section)


def write_qwen3(
    folder: Path, *, block_length: int | None = None, tied: bool = False, seed: int = 0
) -> Path:
    """A Qwen3 of two layers with half as many key heads as query heads."""
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=STOP_TOKEN_ID,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    attention = "bidirectional" if block_length is None else "block_causal"
    return _add_section(folder, attention, block_length, None)


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change fields of the folder's config.json; a value of None removes the field."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(config))
    return folder


def _add_section(
    folder: Path, attention: str, block_length: int | None, section: dict[str, Any] | None
) -> Path:
    return edit_config(
        folder,
        diffusion={
            "version": 1,
            "mask_token_id": MASK_TOKEN_ID,
            "attention": attention,
            "block_length": block_length,
            "logit_shift": False,
            "stop_token_ids": [STOP_TOKEN_ID],
            "never_emit_token_ids": [0, 1, MASK_TOKEN_ID],
            "sampler": {"policy": "entropy_bound"},
            **(section or {}),
        },
    )
