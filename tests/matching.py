"""Whether a text is a word of a language, and words of it, by the matcher itself."""

from __future__ import annotations

import random
from typing import Any

import llguidance

from diffusiongpt.engine.constraint import Constraint

END = "<|end|>"


def make_tokenizer() -> llguidance.LLTokenizer:
    """Bytes, a few longer tokens that straddle marks, and an end of text."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b'"}}', b"}\n", b"\n</tool", b"_call", b"<tool_call>\n", b'{"name": "', b" a", b">x"]
    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Words([*tokens, END.encode()])), eos_token=len(tokens)
    )


class _Words:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.bos_token_id = None
        self.special_token_ids = [len(tokens) - 1]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def matcher(tokenizer: Any, constraint: Constraint) -> Any:
    grammar = llguidance.LLMatcher.grammar_from_lark(constraint.source)
    found = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    assert not found.get_error()
    return found


def is_word(tokenizer: Any, constraint: Constraint, text: str) -> bool:
    found = matcher(tokenizer, constraint)
    data = list(text.encode())
    return found.try_consume_tokens(data) == len(data) and found.is_accepting()


def walk(
    tokenizer: Any, constraint: Constraint, seed: int, limit: int = 400, ending: str = ""
) -> str:
    """A word of the language, its tokens drawn at random, closing what can be closed.

    Args:
        ending: what closes a value, where single characters do not.
    """
    found, generator, data = matcher(tokenizer, constraint), random.Random(seed), b""
    for step in range(limit):
        mask = found.compute_bitmask()
        allowed = [i for i in range(tokenizer.vocab_size) if mask[i // 8] >> i % 8 & 1]
        if tokenizer.eos_token in allowed:
            break
        if step > 60 and ending and can_follow(found, ending):
            found.consume_tokens(list(ending.encode()))
            data += ending.encode()
            continue
        closing = [i for i in allowed if i in (ord('"'), ord("}"), ord("]"))]
        token = generator.choice(closing if closing and step > 60 else allowed)
        assert found.consume_token(token)
        data += tokenizer.decode_bytes([token])
    return data.decode(errors="strict")


def can_follow(matcher: Any, text: str) -> bool:
    """Whether a word may go on so."""
    tokens = list(text.encode())
    return bool(matcher.deep_copy().try_consume_tokens(tokens) == len(tokens))
