"""Tokens of every kind of tokenizer, spelled one by one, give what its decoder makes of the row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.token_bytes import spelling_of

from token_kinds import KINDS, TEXTS


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_are_the_text_of_their_row(kind: str) -> None:
    make, has_leading_space = KINDS[kind]
    tokenizer = make()
    spell = spelling_of(json.loads(tokenizer.to_str()), Path("tokenizer.json"))
    for text in TEXTS:
        encoded = tokenizer.encode(text)
        data = b"".join(map(spell, encoded.tokens))
        expected = tokenizer.decode(encoded.ids, skip_special_tokens=False)
        assert data.decode() == " " * has_leading_space + expected
        if not has_leading_space:
            assert expected == text


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "Fuse"}]},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"},
    ],
)
def test_a_decoder_of_another_kind_is_refused(decoder: dict[str, object] | None) -> None:
    with pytest.raises(LoadError, match=r"folder/tokenizer\.json must have a ByteLevel decoder"):
        spelling_of({"decoder": decoder}, Path("folder/tokenizer.json"))
