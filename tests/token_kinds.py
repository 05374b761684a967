"""A tiny tokenizer of every kind that the engine takes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = [
    "the cat sat on the mat",
    "hello, world. is it so? yes!",
    "a  double space and a\nnew line",
    "naïve 😀 Ünicode",
    "unhappily the sunlit cats",
]


def pieces(*, strips: bool) -> Tokenizer:
    """As of Gemma, or as of Llama 2."""
    letters = [SPACE, *"abcdehilmnopstuyw"]
    vocabulary = {token: i for i, token in enumerate([*BYTES, *letters, "th", f"{SPACE}c", "the"])}
    merges = [("t", "h"), (SPACE, "c"), ("th", "e")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = replace
        tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def metaspace() -> Tokenizer:
    """As of XLM-RoBERTa."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=60, unk_token="?!?"))
    return tokenizer


def word_piece() -> Tokenizer:
    """As of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=60, show_progress=False, special_tokens=["[UNK]"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    """As of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=300, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


# What makes one, and whether its decoder takes away a space at a text's beginning.
KINDS = {
    "byte_level": (byte_level, False),
    "gemma": (lambda: pieces(strips=False), False),
    "llama2": (lambda: pieces(strips=True), True),
    "metaspace": (metaspace, True),
    "word_piece": (word_piece, True),
}
