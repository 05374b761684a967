"""Vocabularies of real tokenizers, which several modules try languages on."""

from __future__ import annotations

import json

import pytest

from diffusiongpt.engine.engine import BUNDLED_MODEL
from diffusiongpt.engine.tokenizer import Tokenizer
from diffusiongpt.engine.tokenizer_files import load_tokenizer
from diffusiongpt.engine.vocabulary import Vocabulary

from tiny_tokenizer import DELETE, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny one."""
    folder = write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    loaded = load_tokenizer(
        folder, vocab_size=VOCAB_SIZE, mask_token_id=MASK, stop_token_ids=[IM_END]
    )
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """That of the tiny tokenizer."""
    return Vocabulary(tokenizer, size=VOCAB_SIZE, stop_ids=[IM_END], banned_ids=[MASK, DELETE])


@pytest.fixture(scope="module")
def bundled_vocabulary() -> Vocabulary:
    """That of the bundled model."""
    config = json.loads((BUNDLED_MODEL / "config.json").read_text())
    size, section = config["vocab_size"], config["diffusion"]
    mask, stops = section["mask_token_id"], section["stop_token_ids"]
    loaded = load_tokenizer(
        BUNDLED_MODEL, vocab_size=size, mask_token_id=mask, stop_token_ids=stops
    )
    assert loaded is not None
    return Vocabulary(loaded, size=size, stop_ids=stops, banned_ids=[mask])
