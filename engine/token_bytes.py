"""The bytes that a token stands for, by the kind of its tokenizer.

The engine needs tokens whose text does not depend on their neighbours. Byte-level tokens (GPT-2,
Llama 3, Qwen) are bytes, and SentencePiece's with byte fallback (Gemma) are text in which U+2581 is
a space. Others write the space between two words nowhere, or before the first word, too: WordPiece
(BERT), Metaspace (XLM-R) and SentencePiece that strips (Llama 2). Of these, a token that begins a
word is given the space before it, also where a text begins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from diffusiongpt.engine.errors import LoadError

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Written without a space before them where the decoder cleans up.
_CLOSING = {".", ",", "?", "!"}

Spelling = Callable[[str], bytes]


def spelling_of(layout: Mapping[str, Any], path: Path) -> Spelling:
    """What spells the tokens of a tokenizer.json.

    Raises:
        LoadError: its decoder is of another kind.
    """
    decoder = layout.get("decoder") or {}
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return _spell_byte_level
    if kinds == ["WordPiece"]:
        return _word_piece(steps[0])
    if kinds == ["Metaspace"] and steps[0].get("replacement") == _SPACE:
        return _spell_pieces
    if kinds in (_PIECES, [*_PIECES, "Strip"]) and _writes_spaces(steps[0]):
        return _spell_pieces_and_bytes
    found = ", ".join(map(str, kinds)) or "none"
    raise LoadError(
        f"{path} must have a ByteLevel decoder (as Qwen, Llama 3, LLaDA, Dream and ModernBERT "
        f"have), WordPiece, Metaspace or {', '.join(_PIECES)} (as Gemma has), got {found}"
    )


_PIECES = ["Replace", "ByteFallback", "Fuse"]


def _writes_spaces(step: Mapping[str, Any]) -> bool:
    return bool(step.get("pattern") == {"String": _SPACE} and step.get("content") == " ")


def _spell_byte_level(token: str) -> bytes:
    byte_of = _byte_of_character()
    return bytes([byte_of[character] for character in token])


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def _spell_pieces(token: str) -> bytes:
    return token.replace(_SPACE, " ").encode()


def _spell_pieces_and_bytes(token: str) -> bytes:
    """A byte is spelled "<0x0A>"."""
    byte = _BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else _spell_pieces(token)


def _word_piece(step: Mapping[str, Any]) -> Spelling:
    prefix, cleans_up = str(step.get("prefix", "##")), bool(step.get("cleanup", True))

    def spell(token: str) -> bytes:
        if token.startswith(prefix) and token != prefix:
            return token[len(prefix) :].encode()
        is_closing = cleans_up and token in _CLOSING
        return (token if is_closing else f" {token}").encode()

    return spell
