"""A model's tokens as grammars see them: bytes, and sets of token ids as bits of an integer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from diffusiongpt.engine.tokenizer import Tokenizer

# Bytes that tend to end something come first.
_ENDS_FIRST = b'"}])0123456789'
_FEW = 24
_LONG_WORDS = 64


@dataclass(slots=True)
class Trie:
    """The tokens of a vocabulary byte by byte, as numbered nodes; node 0 is before the first byte.

    Attributes:
        children: of every node the node after a byte.
        token: of every node the token that ends there, -1 where none does.
        below: of every node the bytes that come after it, as a set.
    """

    children: list[dict[int, int]] = field(default_factory=lambda: [{}])
    token: list[int] = field(default_factory=lambda: [-1])
    below: list[int] = field(default_factory=lambda: [0])

    def add(self, token_id: int, data: bytes) -> None:
        """One token more; of two that are spelled alike the first is kept."""
        node, rest = 0, [0]
        for byte in reversed(data):
            rest.append(rest[-1] | 1 << byte)
        for index, byte in enumerate(data):
            self.below[node] |= rest[len(data) - index]
            child = self.children[node].setdefault(byte, len(self.token))
            if child == len(self.token):
                self.children.append({})
                self.token.append(-1)
                self.below.append(0)
            node = child
        if self.token[node] < 0:
            self.token[node] = token_id


class Vocabulary:
    """The tokens that a model may emit. A set of token ids is an integer, bit i for id i.

    Args:
        size: rows of the model's embedding. stop_ids: tokens that end a text.
        banned_ids: tokens that the model must never emit.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        size: int,
        stop_ids: Collection[int],
        banned_ids: Collection[int],
    ) -> None:
        self.size = size
        self._tokenizer = tokenizer
        self._stop_ids = sorted(stop_ids)
        self.stops = as_set(set(stop_ids) - set(banned_ids))
        self._usable = (1 << size) - 1 & ~as_set(banned_ids)

    @cached_property
    def backend(self) -> LLTokenizer:
        """The tokens in the form in which llguidance takes them."""
        from llguidance import LLTokenizer

        return LLTokenizer(
            _Tokens(self._tokenizer, self.size, self._stop_ids, self.encode),  # type: ignore[arg-type]
            n_vocab=self.size,
            eos_token=self._stop_ids,
        )

    @cached_property
    def _single_bytes(self) -> int:
        return as_set(i for i in range(self.size) if len(self._tokenizer.token_bytes(i)) == 1)

    @cached_property
    def _long_words(self) -> list[int]:
        """Tokens of many letters, the longest first: they fill what must have a length."""
        words = [i for i in range(self.size) if self._tokenizer.token_bytes(i).isalnum()]
        return sorted(words, key=lambda i: -len(self._tokenizer.token_bytes(i)))[:_LONG_WORDS]

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of a text; bytes that are none give other tokens."""
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return self._tokenizer.encode(text)

    def spell(self, token_ids: Sequence[int]) -> bytes:
        """The bytes of tokens; special tokens have none."""
        return b"".join(map(self._tokenizer.token_bytes, token_ids))

    @cached_property
    def trie(self) -> Trie:
        """The tokens that may be part of a text, by their bytes."""
        trie = Trie()
        for token_id, data in self.spelled():
            trie.add(token_id, data)
        return trie

    @cached_property
    def _by_length(self) -> list[int]:
        """Sets of the tokens that may be part of a text, the longest first."""
        lengths: dict[int, list[int]] = {}
        for token_id, data in self.spelled():
            lengths.setdefault(len(data), []).append(token_id)
        return [as_set(lengths[each]) for each in sorted(lengths, reverse=True)]

    def longest(self, allowed: int, count: int) -> list[int]:
        """So many of a set of tokens, those of the most bytes."""
        found = (each for some in self._by_length for each in members(some & allowed))
        return list(islice(found, count))

    @cached_property
    def _width(self) -> int:
        return max((len(data) for _, data in self.spelled()), default=1)

    def least(self, text: bytes) -> int:
        """Tokens that a text takes at the least, by the length of the longest token."""
        return -(-len(text) // self._width)

    def fewest(self, text: bytes) -> list[int] | None:
        """The fewest tokens that spell a text; None where no tokens do."""
        children, token = self.trie.children, self.trie.token
        best: list[tuple[int, int, int] | None] = [(0, 0, -1), *[None] * len(text)]
        for start in range(len(text)):  # (tokens, start of the last one, it)
            before, node, at = best[start], 0, start
            while before is not None and at < len(text) and text[at] in children[node]:
                node, at = children[node][text[at]], at + 1
                if token[node] >= 0 and (best[at] or (before[0] + 2,))[0] > before[0] + 1:
                    best[at] = before[0] + 1, start, token[node]
        tokens, end = list[int](), len(text)
        while end and (found := best[end]):
            tokens.append(found[2])
            end = found[1]
        return tokens[::-1] if not end else None

    def spelled(self) -> Iterator[tuple[int, bytes]]:
        """The tokens that may be part of a text, and their bytes."""
        for token_id in members(self._usable & ~self.stops):
            if data := self._tokenizer.token_bytes(token_id):
                yield token_id, data

    def is_usable(self, token_id: int) -> bool:
        """Whether the model may emit a token."""
        return holds(self._usable, token_id)

    def allowed(self, state: LLMatcher) -> int:
        """The tokens that may follow; those that end a text only where it is whole."""
        allowed = int.from_bytes(state.compute_bitmask(), "little") & self._usable
        if not allowed & self.stops or state.is_accepting():
            return allowed
        for token_id in members(allowed & self.stops):
            ahead = state.deep_copy()
            if not (ahead.consume_token(token_id) and ahead.is_accepting()):
                allowed &= ~(1 << token_id)
        return allowed

    def sample(self, allowed: int, *, sorts: int | None) -> list[int]:
        """Some of a set of tokens, what tends to end something first: all if there are few, else
        one of each sort, of so many sorts; None is every single byte."""
        if allowed.bit_count() <= _FEW:
            return sorted(members(allowed), key=self._ends_first)
        single = islice(members(allowed & self._single_bytes or allowed), 256)
        chosen = sorted(single, key=self._ends_first)
        if sorts is not None:
            first: dict[object, int] = {}
            for token_id in chosen:
                first.setdefault(_sort_of(self._tokenizer.token_bytes(token_id)), token_id)
            chosen = list(first.values())[:sorts]
        return [*chosen, *islice((i for i in self._long_words if holds(allowed, i)), 1)]

    def _ends_first(self, token_id: int) -> tuple[int, bytes]:
        data = self._tokenizer.token_bytes(token_id)
        rank = _ENDS_FIRST.find(data[:1]) if data else -1
        return (len(_ENDS_FIRST) if rank < 0 else rank), data


def _sort_of(data: bytes) -> object:
    """What a token stands for in a search: a digit, a letter, part of a longer character, or
    itself."""
    if data.isdigit() or data.isalpha():
        return data.isdigit()
    return data[0] >> 4 if data and data[0] >= 0x80 else data


class _Tokens:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self,
        tokenizer: Tokenizer,
        size: int,
        stop_ids: list[int],
        encode: Callable[[str | bytes], list[int]],
    ) -> None:
        self._encode = encode
        self.eos_token_id = stop_ids[0]
        data = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        self.special_token_ids = [token_id for token_id, each in enumerate(data) if not each]
        self.tokens = [
            each or tokenizer.spell(token_id)[0].encode() for token_id, each in enumerate(data)
        ]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text)


def as_set(token_ids: Iterable[int]) -> int:
    """A set of token ids."""
    bits = 0
    for token_id in token_ids:
        bits |= 1 << token_id
    return bits


def holds(bits: int, token_id: int) -> bool:
    """Whether a set holds a token id."""
    return bool(bits >> token_id & 1)


def members(bits: int) -> Iterator[int]:
    """The token ids of a set, in order."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
