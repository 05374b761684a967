"""A deterministic automaton lifted from bytes to the tokens of a vocabulary. Torch-free.

Tokens that move every state alike are one class, and what is kept of a pair of states is the set
of classes that lead from the first to the second. One more state is the end: a stop token leads
there from where the text is whole, and one stop token, the lowest, fills what is left.

Legend: S states, E pairs of states with a token between them, C classes of tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffusiongpt.engine.automaton import Automaton, TooLarge
from diffusiongpt.engine.vocabulary import Vocabulary, holds, members

States = NDArray[np.bool_]  # (S,)
Weights = NDArray[np.float64]  # (S,) or (E,)
_MAX_MAPS = 4_000_000  # entries of what tokens do to states
_MAX_WORDS = 2_000_000  # of classes, 64 to a word, over pairs of states


class LiftedAutomaton:
    """Which tokens lead from one set of states to another.

    Raises:
        TooLarge: it would take too much room, and every step too long.
    """

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary) -> None:
        self._stops = vocabulary.stops
        self._pad = vocabulary.stops & -vocabulary.stops
        self._class_of, maps = _classify(automaton, vocabulary)
        num_states, num_classes = len(automaton.table), len(maps) + 2
        self.end = num_states
        stop, pad = num_classes - 2, num_classes - 1
        number, state = np.nonzero(maps)
        whole = np.flatnonzero(automaton.accepting)
        source = np.concatenate([state, whole, [self.end]])
        target = np.concatenate([maps[number, state], np.full_like(whole, self.end), [self.end]])
        number = np.concatenate([number, np.full_like(whole, stop), [pad]])
        self._stop_classes = stop, pad
        self._source, self._target, self._bits = _pack(source, target, number, num_classes)
        self.first = self._set_of((1,))
        self.last = np.append(automaton.accepting, True)
        self._kept = lru_cache(maxsize=128)(self._tokens)

    @property
    def size(self) -> tuple[int, int]:
        """States over bytes, and pairs of states with a token between them."""
        return self.end, len(self._source)

    def _set_of(self, states: Collection[int]) -> States:
        made = np.zeros(self.end + 1, dtype=bool)
        made[list(states)] = True
        return made

    def after(self, states: States, token_id: int | None) -> States:
        """The states after a token, or after any one."""
        moves = states[self._source] & self._has(token_id)
        reached = np.zeros_like(states)
        reached[self._target[moves]] = True
        return reached

    def before(self, states: States, token_id: int | None) -> States:
        """The states from which a token, or any one, leads to some of `states`."""
        moves = states[self._target] & self._has(token_id)
        reached = np.zeros_like(states)
        reached[self._source[moves]] = True
        return reached

    def leads(self, before: States, token_id: int, after: States) -> bool:
        """Whether a token leads from some state to some other."""
        return bool((before[self._source] & after[self._target] & self._has(token_id)).any())

    def between(self, before: States, after: States) -> int:
        """The tokens that lead from some state to some other, a set."""
        moves = before[self._source] & after[self._target]
        return self._kept(np.bitwise_or.reduce(self._bits[moves], axis=0).tobytes())

    def _tokens(self, classes: bytes) -> int:
        chosen = np.unpackbits(np.frombuffer(classes, dtype=np.uint8), bitorder="little")
        chosen = chosen.astype(bool)
        stop, pad = self._stop_classes
        is_in = (self._class_of >= 0) & chosen[self._class_of]
        tokens = int.from_bytes(np.packbits(is_in, bitorder="little").tobytes(), "little")
        return tokens | self._stops * bool(chosen[stop]) | self._pad * bool(chosen[pad])

    def _has(self, token_id: int | None) -> States:
        """(E,) which pairs have a token between them."""
        if token_id is None:
            return np.ones(len(self._source), dtype=bool)
        stop, pad = self._stop_classes
        classes = [int(self._class_of[token_id])]
        if holds(self._stops, token_id):
            classes = [stop, pad] if holds(self._pad, token_id) else [stop]
        found = np.zeros(len(self._source), dtype=bool)
        for each in classes:
            if each >= 0:
                found |= (self._bits[:, each // 64] >> np.uint64(each % 64) & np.uint64(1)) > 0
        return found

    def shortest(self, limit: int) -> list[int] | None:
        """The tokens of a shortest text, None if there is none of at most `limit` tokens."""
        before, line = self._set_of((1,)), []
        seen = np.zeros_like(before)
        while not (before & self.last).any():
            line.append(before)
            following = self.after(before, None)
            following[self.end] = False
            # What came before need not come again on a shortest way.
            seen |= before
            following &= ~seen
            if not following.any() or len(line) > limit:
                return None
            before = following
        return self._retrace(line, before & self.last)

    def longest(self, limit: int) -> int:
        """Tokens of the longest text, or `limit` if it is longer."""
        states = self.first
        for count in range(limit):
            states = self.after(states, None)
            if not states[: self.end].any():
                return count
        return limit

    def keep_most(self, tokens: Mapping[int, tuple[int, float]], length: int) -> list[int]:
        """Of tokens at positions those that some text of `length` positions has together, so that
        what is kept weighs as much as can be (Viterbi's algorithm).

        Args:
            tokens: by position a token and its weight, above 0; elsewhere any may stand.

        Returns:
            The positions that are kept, in order; none where no text has so many positions.
        """
        ways = _Ways(self._source, self._target)
        given = [
            tokens.get(position, (None, 0.0)) for position in range(max(tokens, default=-1) + 1)
        ]
        best = [np.where(self.first, 0.0, -np.inf)]
        for token_id, weight in given:
            best.append(ways.follow(best[-1], self._gain(token_id, weight)))
        state = int(np.where(self._before_last(length - len(given)), best[-1], -np.inf).argmax())
        if best[-1][state] == -np.inf:
            return []
        kept = []
        for position in reversed(range(len(given))):
            token_id, weight = given[position]
            gained = self._gain(token_id, weight)
            edge = ways.retrace(best[position], gained, state)
            state = int(self._source[edge])
            if gained[edge]:
                kept.append(position)
        return kept[::-1]

    def _gain(self, token_id: int | None, weight: float) -> Weights:
        """(E,) what a token adds to ways that go by it."""
        if token_id is None:
            return np.zeros(len(self._source))
        return np.where(self._has(token_id), weight, 0.0)

    def _before_last(self, count: int) -> States:
        """The states from which some text ends so many positions further."""
        states = self.last
        for _ in range(count):
            before = self.before(states, None)
            if (before == states).all():
                break
            states = before
        return states

    def _retrace(self, line: Sequence[States], after: States) -> list[int]:
        tokens: list[int] = []
        for before in reversed(line):
            token_id = next(members(self.between(before, after)))
            tokens.insert(0, token_id)
            after = self.before(after, token_id) & before
        return tokens


class _Ways:
    """The best ways to states, over pairs of states with a token between them."""

    def __init__(self, source: NDArray[np.int64], target: NDArray[np.int64]) -> None:
        self._source, self._target = source, target
        self._order = np.argsort(target, kind="stable")
        self._begins = np.flatnonzero(np.diff(target[self._order], prepend=-1))

    def follow(self, best: Weights, gained: Weights) -> Weights:
        """(S,) the best ways one token further; `gained` (E,) is what a pair adds."""
        reached = best[self._source] + gained
        found = np.full_like(best, -np.inf)
        ends = self._target[self._order[self._begins]]
        found[ends] = np.maximum.reduceat(reached[self._order], self._begins)
        return found

    def retrace(self, best: Weights, gained: Weights, state: int) -> int:
        """The pair by which the best way came to a state."""
        pairs = np.flatnonzero(self._target == state)
        reached = best[self._source[pairs]] + gained[pairs]
        return int(pairs[reached.argmax()])


def _classify(
    automaton: Automaton, vocabulary: Vocabulary
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The class of every token (V,), -1 where it leads nowhere, and what each class does to the
    states, (C, S)."""
    still = np.arange(len(automaton.table), dtype=np.int32)
    maps, number = [np.zeros_like(still), still], {bytes(still.nbytes): 0, still.tobytes(): 1}
    after: dict[tuple[int, int], int] = {}
    class_of = np.full(vocabulary.size, -1, dtype=np.int32)
    used: dict[int, int] = {}
    for token_id, data in vocabulary.spelled():
        at = 1
        for byte in data:
            if not at:
                break
            following = after.get((at, byte))
            if following is None:
                moved = automaton.table[maps[at], byte]
                following = number.setdefault(moved.tobytes(), len(maps))
                if following == len(maps):
                    maps.append(moved)
                    if len(maps) * len(still) > _MAX_MAPS:
                        raise TooLarge
                after[at, byte] = following
            at = following
        if at:
            class_of[token_id] = used.setdefault(at, len(used))
    return class_of, np.stack([maps[each] for each in (*used, 0)])


def _pack(
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    number: NDArray[np.int64],
    num_classes: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Pairs of states (E,), and bits of the classes between them (E, C / 64)."""
    num_states = int(max(source.max(), target.max())) + 1
    pairs, index = np.unique(source * num_states + target, return_inverse=True)
    width = (num_classes + 63) // 64
    if len(pairs) * width > _MAX_WORDS:
        raise TooLarge
    bits = np.zeros((len(pairs), width), dtype=np.uint64)
    one = np.left_shift(np.uint64(1), (number % 64).astype(np.uint64))
    np.bitwise_or.at(bits, (index, number // 64), one)
    return pairs // num_states, pairs % num_states, bits
