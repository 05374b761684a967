"""Writes the folder of a tiny byte-level BPE tokenizer, trained in a moment on a few sentences."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|mask|>",
    "<|delete|>",
)
PAD, END_OF_TEXT, IM_START, IM_END, MASK, DELETE = range(len(SPECIAL_TOKENS))
VOCAB_SIZE = 320

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SENTENCES = (
    "the cat sat on the mat and the dog sat in the sun",
    "one day the little girl went out to play with the other children",
    "user and assistant and system say hello to the world",
)


def write_tiny_tokenizer(
    folder: Path, *, vocab_size: int = VOCAB_SIZE, chat_template: str | None = CHATML
) -> Path:
    """Write `tokenizer.json` and `tokenizer_config.json`; special tokens take ids 0 to 5."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _SENTENCES,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL_TOKENS[PAD],
        "eos_token": SPECIAL_TOKENS[END_OF_TEXT],
        "mask_token": SPECIAL_TOKENS[MASK],
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder
