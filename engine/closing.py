"""How a text that has begun can be ended within its language, in few tokens.

A matcher says what may come next, and not how far the end is, nor whether two of its states are
one. Of a language with few beginnings all are followed, which finds the shortest text for sure.
Else the search goes token by token, and of all states that allow the same next tokens it keeps
one. What it finds is a way to the end, perhaps not the shortest; that is enough to promise that a
text will be whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from diffusiongpt.engine.vocabulary import holds, members

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from diffusiongpt.engine.vocabulary import Vocabulary

_WIDTHS = (2, 8, 24)  # states of the same length that are followed
# Kinds of next tokens that are tried: few, one of each, every single byte.
_SORTS = {2: 8, 8: 64, 24: None}
_MANY_STATES = 3000
SOME_STATES = 300  # while a text is written
# Width, whether long tokens are taken, and when the search ends where every state takes long:
# what must have a length is soon written with long tokens, and all else with what ends something.
_SEARCHES = (
    (2, False, 0.15),
    (2, True, 0.18),
    (8, False, 0.24),
    (8, True, 0.27),
    (24, False, 0.33),
)
_ALL_STATES = 9000  # of all searches together
_MANY_BEGINNINGS, _SECONDS_FOR_ALL = 1000, 0.08
_NUM_LONG = 12
_FORCED_OF_A_STATE = 16  # so many tokens without an alternative count as a state
_MEMORY = 6


class _TooMany(Exception):
    """A language has too many beginnings to follow all."""


def keeps_closing(matcher: LLMatcher, closing: Sequence[int]) -> bool:
    """Whether `closing` leads from the matcher's state to a whole text."""
    ahead, but_last, last = matcher.deep_copy(), list(closing[:-1]), closing[-1:]
    if ahead.try_consume_tokens(but_last) < len(but_last):
        return False
    # Trying does not take a token that ends the text.
    return all(map(ahead.consume_token, last)) and bool(ahead.is_accepting())


class Effort:
    """The states that searches may still look at; a text that is forced costs by its length."""

    def __init__(self, states: int, deadline: float = float("inf")) -> None:
        self.left = states
        self._deadline = deadline

    @property
    def is_spent(self) -> bool:
        """Whether no state may be looked at any more."""
        return self.left <= 0 or time.thread_time() > self._deadline


def find_shortest(matcher: LLMatcher, vocabulary: Vocabulary, limit: int) -> list[int] | None:
    """The shortest of a language's texts that is found, `limit` tokens at most, or None.

    Where all beginnings can be followed it is the shortest. Else a narrow search goes deep, and
    wider ones then look for something shorter. The matcher stays as it is. The searches end after
    a count of states, so that every machine finds the same; where every state takes long,
    processor time ends them, a third of a second in all.
    """
    began = time.thread_time()
    if len(matcher.deep_copy().compute_ff_tokens()) > limit:
        return None
    try:
        return _search_all(matcher, vocabulary, limit, began + _SECONDS_FOR_ALL)
    except _TooMany:
        pass
    shortest: list[int] | None = None
    left = _ALL_STATES
    for width, is_far, until in _SEARCHES:
        effort = Effort(min(left, _MANY_STATES), began + until)
        if effort.is_spent:
            continue
        before = effort.left
        found = _search(matcher, vocabulary, limit, width, effort, is_far=is_far)
        left -= before - effort.left
        if found is not None:
            shortest = _spell_in_fewest(matcher, vocabulary, found)
            limit = len(shortest) - 1
    return shortest


def _spell_in_fewest(
    matcher: LLMatcher, vocabulary: Vocabulary, tokens: Sequence[int]
) -> list[int]:
    """The same text in as few tokens as spell it; special tokens stay."""
    spelled: list[int] = []
    for has_text, run in groupby(tokens, key=lambda each: bool(vocabulary.spell([each]))):
        part = list(run)
        spelled += (vocabulary.fewest(vocabulary.spell(part)) or part) if has_text else part
    is_shorter = len(spelled) < len(tokens) and keeps_closing(matcher, spelled)
    return spelled if is_shorter else list(tokens)


def _search_all(
    matcher: LLMatcher, vocabulary: Vocabulary, limit: int, deadline: float
) -> list[int] | None:
    """The shortest text, None if it is longer than `limit`; raises _TooMany.

    Ways that have written the same bytes have come to the same state.
    """
    states, seen = {b"": _State(matcher.deep_copy())}, {b""}
    num_left = _MANY_BEGINNINGS
    for _ in range(limit + 1):
        following: dict[bytes, _State] = {}
        for written, state in states.items():
            if state.matcher.is_accepting():
                return list(state.tokens)
            allowed = vocabulary.allowed(state.matcher)
            num_left -= allowed.bit_count()
            if num_left < 0 or time.thread_time() > deadline:
                raise _TooMany
            for token_id in members(allowed):
                beginning = written + (vocabulary.spell([token_id]) or b"\xff%d;" % token_id)
                if beginning not in seen and (ahead := state.after(token_id)) is not None:
                    following[beginning] = ahead
                    seen.add(beginning)
        states = following
    return None


def find_closing(
    matcher: LLMatcher, vocabulary: Vocabulary, limit: int, effort: Effort
) -> list[int] | None:
    """A way to the end that is short enough, or None where none is found soon.

    How soon is a count, and not a time: the same request finds the same on every machine.
    """
    for width in _WIDTHS[:2]:
        found = _search(matcher, vocabulary, limit, width, effort)
        if found is not None:
            return found
    return None


def _search(
    matcher: LLMatcher,
    vocabulary: Vocabulary,
    limit: int,
    width: int,
    effort: Effort,
    *,
    is_far: bool = False,
) -> list[int] | None:
    """Breadth first, `width` states of each length.

    Args:
        is_far: try long tokens, and of states that allow the same keep the one that wrote most.
    """
    levels: dict[int, list[_State]] = {0: [_State(matcher.deep_copy())]}
    while levels:
        length = min(levels)
        for state in (states := _choose(levels.pop(length), width, is_far=is_far)):
            if state.matcher.is_accepting():
                return list(state.tokens)
        for state in states if length < limit else ():
            following = state.successors(vocabulary, limit, sorts=_SORTS[width], is_far=is_far)
            for ahead in following:
                effort.left -= 1 + ahead.num_forced // _FORCED_OF_A_STATE
                levels.setdefault(len(ahead.tokens), []).append(ahead)
                if effort.is_spent:
                    return _whole(levels)
    return None


def _whole(levels: Mapping[int, Sequence[_State]]) -> list[int] | None:
    """The shortest whole text among states."""
    for length in sorted(levels):
        for state in levels[length]:
            if state.matcher.is_accepting():
                return list(state.tokens)
    return None


def _choose(states: Sequence[_State], width: int, *, is_far: bool) -> list[_State]:
    """Of the states of one length those that are followed: of each that allow the same one."""
    chosen: dict[int, _State] = {}
    for state in states:
        known = chosen.setdefault(state.key, state)
        if is_far and state.num_bytes > known.num_bytes:
            chosen[state.key] = state
    return sorted(chosen.values(), key=_State.num_returns)[:width]


@dataclass(frozen=True, slots=True)
class _State:
    """A state of the search, the tokens that led there, and what was allowed on the way.

    Attributes:
        num_forced: how many of the last tokens had no alternative.
    """

    matcher: LLMatcher
    tokens: tuple[int, ...] = ()
    path: tuple[int, ...] = ()
    num_bytes: int = 0
    num_forced: int = 0

    @property
    def key(self) -> int:
        """What is allowed: states that allow the same are taken for one."""
        return self.path[-1] if self.path else 0

    def num_returns(self) -> int:
        """How often the way came by lately: those that go round in circles get nowhere."""
        return self.path[-1 - _MEMORY : -1].count(self.key)

    def after(self, token_id: int) -> _State | None:
        """The state one token further, None where it may not come."""
        ahead = self.matcher.deep_copy()
        return _State(ahead, (*self.tokens, token_id)) if ahead.consume_token(token_id) else None

    def successors(
        self, vocabulary: Vocabulary, limit: int, *, sorts: int | None, is_far: bool
    ) -> Iterator[_State]:
        """The states one token further, or after what has no alternative."""
        room = limit - len(self.tokens)
        forced = self.matcher.compute_ff_tokens()[: room + 1]
        stop = next((i for i, each in enumerate(forced) if holds(vocabulary.stops, each)), None)
        if stop is not None:
            # Where a text may end in the middle of it, one token after the other is looked at.
            forced = forced[:stop]
        if forced and all(map(vocabulary.is_usable, forced)):
            if len(forced) <= room:
                yield from self._made(vocabulary, self._after_all(forced), len(forced))
            return
        for token_id in _candidates(self.matcher, vocabulary, sorts=sorts, is_far=is_far):
            yield from self._made(vocabulary, self.after(token_id), 0)

    def _after_all(self, forced: Sequence[int]) -> _State | None:
        ahead = self.matcher.deep_copy()
        *but_last, last = forced
        if ahead.try_consume_tokens(but_last) < len(but_last) or not ahead.consume_token(last):
            return None
        return _State(ahead, (*self.tokens, *forced))

    def _made(self, vocabulary: Vocabulary, ahead: _State | None, forced: int) -> Iterator[_State]:
        if ahead is None:
            return
        # A whole text may allow the same tokens as one that is not.
        key = vocabulary.allowed(ahead.matcher) << 1 | ahead.matcher.is_accepting()
        if key:
            added = ahead.tokens[len(self.tokens) :]
            num_bytes = self.num_bytes + len(vocabulary.spell(added))
            path = (*self.path[-_MEMORY:], key)
            yield replace(ahead, path=path, num_bytes=num_bytes, num_forced=forced)


def _candidates(
    state: LLMatcher, vocabulary: Vocabulary, *, sorts: int | None, is_far: bool
) -> Iterator[int]:
    """Tokens to go on with: all if there are few, else some of each sort, or long ones."""
    allowed = vocabulary.allowed(state)
    some = vocabulary.sample(allowed, sorts=sorts)
    yield from dict.fromkeys([*vocabulary.longest(allowed, _NUM_LONG), *some] if is_far else some)
