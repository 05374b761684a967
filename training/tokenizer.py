"""Trains the byte-level BPE tokenizer and writes it so that AutoTokenizer reads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from diffusiongpt.training.config import ConfigError

PAD = "<|pad|>"
END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
MASK = "<|mask|>"
DELETE = "<|delete|>"
SPECIAL_TOKENS = (PAD, END_OF_TEXT, IM_START, IM_END, MASK, DELETE)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE of `vocab_size` tokens, special tokens included, from `texts`."""
    floor = len(SPECIAL_TOKENS) + 256
    if vocab_size < floor:
        raise ConfigError(
            f"vocab_size must be >= {floor} (256 bytes and the specials), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=IM_END,
        mask_token=MASK,
        additional_special_tokens=[END_OF_TEXT, IM_START, DELETE],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def special_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of the special tokens by their text; a tokenizer without them is refused."""
    ids: dict[str, int] = {}
    known = tokenizer.get_vocab()
    for token in SPECIAL_TOKENS:
        position = known.get(token)
        if position is None:
            raise ConfigError(
                f"the tokenizer has no token {token!r}; `diffusiongpt convert` adds what is "
                "missing to a model, `diffusiongpt tokenizer --source` to a tokenizer alone"
            )
        ids[token] = int(position)
    return ids


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
