"""From any pretrained model to one that can be trained as a diffusion model.

Adds the special tokens that the tokenizer lacks, rows for them, and a chat template that ends
answers as we do. The weights stay what they are.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.native import facts_of
from diffusiongpt.engine.tokenizer_files import load_tokenizer
from diffusiongpt.training.backbones import load_backbone, output_embedding
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    MASK,
    PAD,
    SPECIAL_TOKENS,
    save_tokenizer,
)


def convert(source: str, folder: str | Path) -> Path:
    """Write the model of a folder or hub id with our special tokens into `folder`.

    Raises:
        ConfigError: no model or tokenizer there, or one that the engine does not serve.
    """
    network = load_backbone(source, attention="sdpa")
    tokenizer = load_any_tokenizer(source)
    known, own_mask = max(tokenizer.get_vocab().values()) + 1, tokenizer.mask_token_id
    add_special_tokens(tokenizer)
    check_servable(tokenizer)
    resize_vocabulary(network, known, max(tokenizer.get_vocab().values()) + 1)
    if own_mask is not None:
        copy_row(network, own_mask, tokenizer.mask_token_id)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (PAD, IM_END)}
    network.config.eos_token_id = ids[IM_END]
    if not facts_of(network).skips_padding:  # positions hang on it
        network.config.pad_token_id = ids[PAD]
    network.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return Path(folder)


def adopt_tokenizer(source: str, folder: str | Path) -> Path:
    """Write the tokenizer of a folder or hub id with our special tokens into `folder`.

    For a network of our own that speaks another model's vocabulary, GPT-2's say.

    Raises:
        ConfigError: there is no tokenizer, or one that the engine could not serve with.
    """
    tokenizer = load_any_tokenizer(source)
    add_special_tokens(tokenizer)
    check_servable(tokenizer)
    save_tokenizer(tokenizer, folder)
    return Path(folder)


def load_any_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub id, which must have a tokenizer.json."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"there is no tokenizer in {source!r}: {reason}") from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer of {source!r} must have a tokenizer.json, "
            f"got a {type(tokenizer).__name__}"
        )
    return tokenizer


def add_special_tokens(tokenizer: Any) -> None:
    """Add our special tokens, and our chat template where answers end in another way."""
    known = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in known]
    tokenizer.add_special_tokens({"additional_special_tokens": missing})
    tokenizer.pad_token, tokenizer.mask_token, tokenizer.eos_token = PAD, MASK, IM_END
    if IM_END not in (tokenizer.chat_template or ""):
        tokenizer.chat_template = CHAT_TEMPLATE


def check_servable(tokenizer: Any) -> None:
    """Refuse a tokenizer that the engine could not serve with, before anything is trained.

    Raises:
        ConfigError: why it could not.
    """
    vocabulary = tokenizer.get_vocab()
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        try:
            load_tokenizer(
                folder,
                vocab_size=max(vocabulary.values()) + 1,
                mask_token_id=vocabulary[MASK],
                stop_token_ids=[vocabulary[IM_END], vocabulary[END_OF_TEXT]],
            )
        except LoadError as error:
            raise ConfigError(f"what is trained could not be served: {error}") from error


@torch.no_grad()
def resize_vocabulary(network: PreTrainedModel, known: int, size: int) -> None:
    """Give the embeddings `size` rows; those after the first `known` are the mean of these."""
    network.resize_token_embeddings(size, mean_resizing=False)
    tables: list[Any] = [network.get_input_embeddings(), output_embedding(network)]
    for table in tables:
        table.weight[known:] = table.weight[:known].mean(0)
        bias = getattr(table, "bias", None)
        if bias is not None:
            bias[known:] = bias[:known].mean()
            if not network.config.tie_word_embeddings:
                # BERT has a second name for it, by which it was resized and would be saved.
                table.bias = nn.Parameter(bias.clone())


@torch.no_grad()
def copy_row(network: PreTrainedModel, source: int, target: int) -> None:
    """Let a token be seen as another one is: our mask as that of a masked language model."""
    seen: Any = network.get_input_embeddings()
    seen.weight[target] = seen.weight[source]
