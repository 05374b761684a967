"""How a text that has begun can be ended within its language, in few tokens.

A matcher says what may come next, and not how far the end is. The search goes token by token, and
of all states that allow the same next tokens it keeps one. What it finds is a way to the end,
perhaps not the shortest; that is enough to promise that a text will be whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from diffusiongpt.engine.vocabulary import Vocabulary

_WIDTHS = (2, 8, 24)  # states of the same length that are followed
# Kinds of next tokens that are tried: few, one of each, every single byte.
_SORTS = {2: 8, 8: 64, 24: None}
_MANY_STATES, _SOME_STATES = 3000, 400
_SECONDS = (0.25, 0.4, 0.55)  # when the search of each width ends
_MEMORY = 6


def keeps_closing(matcher: LLMatcher, closing: Sequence[int]) -> bool:
    """Whether `closing` leads from the matcher's state to a whole text."""
    ahead = matcher.deep_copy()
    if ahead.try_consume_tokens(list(closing)) < len(closing):
        return False
    return bool(ahead.is_accepting())


def find_shortest(matcher: LLMatcher, vocabulary: Vocabulary, limit: int) -> list[int] | None:
    """The shortest of a language's texts that is found, `limit` tokens at most, or None.

    A narrow search goes deep, and wider ones then look for something shorter. The matcher stays
    as it is. Each ends after a count of states, so that every machine finds the same; where
    every state takes long, processor time ends it, 0.55 seconds in all.
    """
    began = time.thread_time()
    shortest: list[int] | None = None
    for width, until in zip(_WIDTHS, _SECONDS, strict=True):
        found = _search(matcher, vocabulary, limit, width, _MANY_STATES, began + until)
        if found is not None:
            shortest, limit = found, len(found) - 1
    return shortest


def find_closing(matcher: LLMatcher, vocabulary: Vocabulary, limit: int) -> list[int] | None:
    """A way to the end that is short enough, or None where none is found soon.

    How soon is a count, and not a time: the same request finds the same on every machine.
    """
    for width in _WIDTHS[:2]:
        found = _search(matcher, vocabulary, limit, width, _SOME_STATES)
        if found is not None:
            return found
    return None


def _search(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    limit: int,
    width: int,
    max_states: int,
    deadline: float = float("inf"),
) -> list[int] | None:
    """Breadth first, `width` states of each length."""
    states = [_State(matcher.deep_copy())]
    for length in range(limit + 1):
        for state in states:
            if state.matcher.is_accepting():
                return list(state.tokens)
        if length == limit or max_states <= 0 or time.thread_time() > deadline:
            return None
        following: dict[int, _State] = {}
        for state in states:
            for ahead in state.successors(vocabulary, sorts=_SORTS[width]):
                max_states -= 1
                following.setdefault(ahead.path[-1], ahead)
        if not following:
            return None
        states = sorted(following.values(), key=_State.num_returns)[:width]
    return None


@dataclass(frozen=True, slots=True)
class _State:
    """A state of the search, the tokens that led there, and what was allowed on the way."""

    matcher: LLMatcher
    tokens: tuple[int, ...] = ()
    path: tuple[int, ...] = ()

    def num_returns(self) -> int:
        """How often the way came by lately: those that go round in circles get nowhere."""
        return self.path[-1 - _MEMORY : -1].count(self.path[-1])

    def successors(self, vocabulary: Vocabulary, *, sorts: int | None) -> Iterator[_State]:
        """The states one token further."""
        for token_id in _candidates(self.matcher, vocabulary, sorts=sorts):
            ahead = self.matcher.deep_copy()
            if not ahead.consume_token(token_id):
                continue
            # A whole text may allow the same tokens as one that is not.
            key = vocabulary.allowed(ahead) << 1 | ahead.is_accepting()
            if key:
                path = (*self.path[-_MEMORY:], key)
                yield _State(ahead, (*self.tokens, token_id), path)


def _candidates(state: LLMatcher, vocabulary: Vocabulary, *, sorts: int | None) -> Iterator[int]:
    """Tokens to go on with: all if there are few, else some of each sort."""
    forced = state.compute_ff_tokens()
    if forced and vocabulary.is_usable(forced[0]):
        yield forced[0]
        return
    yield from vocabulary.sample(vocabulary.allowed(state), sorts=sorts)
