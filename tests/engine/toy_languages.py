"""A vocabulary of ten tokens, and every canvas of it that holds a word, by trying all."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import cast

from diffusiongpt.engine.tokenizer import Tokenizer
from diffusiongpt.engine.vocabulary import Vocabulary

TOKENS = [b"a", b"b", b"ab", b"ba", b"c", "é".encode()[:1], "é".encode()[1:], b"", b"", b"bb"]
PAD, STOP, BANNED = 7, 8, 9
LENGTH = 4


def toy_vocabulary() -> Vocabulary:
    tokenizer = cast(Tokenizer, SimpleNamespace(token_bytes=TOKENS.__getitem__))
    return Vocabulary(tokenizer, size=len(TOKENS), stop_ids=(PAD, STOP), banned_ids=(BANNED,))


def canvases(regex: str) -> list[tuple[int, ...]]:
    """Every full canvas of LENGTH positions that holds a word."""
    found = []
    for tokens in itertools.product(range(BANNED), repeat=LENGTH):
        end = next((i for i, each in enumerate(tokens) if each in (PAD, STOP)), LENGTH)
        if any(each != PAD for each in tokens[end + 1 :]):
            continue
        try:
            text = b"".join(TOKENS[each] for each in tokens).decode()
        except UnicodeDecodeError:
            continue
        if re.fullmatch(regex, text):
            found.append(tokens)
    return found
