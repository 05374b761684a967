"""A folder with a tiny random model and its tokenizer."""

from __future__ import annotations

import pytest

from tiny_models import write_modernbert
from tiny_tokenizer import END_OF_TEXT, IM_END, MASK, PAD, VOCAB_SIZE, write_tiny_tokenizer

SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [PAD, END_OF_TEXT, MASK],
}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The folder, as a string; the model never learned anything."""
    folder = tmp_path_factory.mktemp("tiny")
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=4, section=SECTION)
    return str(write_tiny_tokenizer(folder))
