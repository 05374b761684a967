"""Keeps one completion within its language, from left to right.

The frontier is the first masked position. There the model draws from what the language allows;
what it draws right of it in the same step is a proposal, and is kept as far as it goes on in the
language, token by token from the frontier. The noise of a draw depends on position and token
alone, so a proposal that is allowed is the token that would have been drawn among the allowed
ones, and one that is not is drawn anew among them when the frontier has come to it.

A guide always knows a closing: tokens that lead from what is committed to a whole text and fit
into what is left of the canvas. No token is committed after which none was found, so the text is
whole when its canvas is full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from diffusiongpt.engine.closing import SOME_STATES, Effort, find_closing, keeps_closing
from diffusiongpt.engine.languages import Language
from diffusiongpt.engine.vocabulary import as_set, holds, members

if TYPE_CHECKING:
    from llguidance import LLMatcher

# So few allowed tokens are each tried whether a closing is left, when room gets short; where the
# known closing is long, another one is not looked for.
_FEW, _SHORT, _SEARCHED = 16, 16, 32
_MAX_SKIPPED = 6


class Guide:
    """What may come next in one completion of `length` positions, and what was accepted.

    Attributes:
        position: the frontier, a position of the completion.
        is_complete: whether the text is whole and cannot go on.
        seconds: what finding and checking tokens took so far.
    """

    is_in_order = True

    def __init__(self, language: Language, length: int) -> None:
        self.position = 0
        self.is_complete = False
        self.seconds = 0.0
        self._length = length
        self._vocabulary = language.vocabulary
        self._state: LLMatcher | None = language.matcher.deep_copy()
        self._closing = list(language.shortest)
        self._must_close = False
        self._allowed: int | None = None

    def allowed(self) -> int:
        """The tokens that may be committed at the frontier, at least one."""
        if self._allowed is None:
            begun = perf_counter()
            self._allowed = self._allow()
            self.seconds += perf_counter() - begun
        return self._allowed

    def accept(self, tokens: Sequence[int]) -> int:
        """Take over tokens drawn from the frontier on; how many of them are committed.

        None are where the first leaves no room to end the text; then only the closing's token is
        allowed at this frontier.
        """
        allowed, self._allowed = self.allowed(), None
        begun = perf_counter()
        count = self._accept(allowed, tokens)
        self.seconds += perf_counter() - begun
        return count

    def _accept(self, allowed: int, tokens: Sequence[int]) -> int:
        if not holds(allowed, tokens[0]):
            return 0
        if self._state is None:
            return self._follow_closing()
        states, effort = list(self._walk(self._state, tokens)), Effort(SOME_STATES)
        for count in range(len(states), 0, -1):
            has_ended = holds(self._vocabulary.stops, tokens[count - 1])
            closing = [] if has_ended else self._close(states[count - 1], tokens[:count], effort)
            if closing is not None:
                self._move(states[count - 1], count, closing, has_ended)
                return count
        if self._must_close:
            # The matcher does not even take what is known to lead to the end: it has given up.
            self._state = None
            return self._follow_closing()
        self._must_close = True
        return 0

    def open_sets(self, start: int, stop: int) -> dict[int, int]:
        """The frontier, if it is among start..stop, and the tokens that are allowed there."""
        return {self.position: self.allowed()} if start <= self.position < stop else {}

    def accept_at(
        self, positions: Sequence[int], tokens: Sequence[int], sureness: Sequence[float]
    ) -> list[bool]:
        """Take over tokens drawn from the frontier on; which of them are committed."""
        count = self.accept(tokens)
        return [index < count for index in range(len(tokens))]

    def held_sets(self, start: int, stop: int) -> dict[int, int]:
        """Nothing may take the place of what is committed."""
        return {}

    def release(self, positions: Sequence[int]) -> None:
        """What is committed stays; requests that would take it back are refused."""
        if positions:
            raise ValueError(f"a text from left to right keeps its tokens, got {list(positions)}")

    def take_forced_in(self, start: int, stop: int, most: int) -> list[tuple[int, int]]:
        """Commit tokens from the frontier on, `most` of them, as long as there is no choice."""
        first = self.position
        return list(enumerate(self.take_forced(most), start=first))

    def is_past_end(self, position: int) -> bool:
        """Nothing is committed after the end."""
        return False

    def take_forced(self, most: int) -> list[int]:
        """Commit tokens, `most` of them, as long as there is no choice: they need no draw."""
        taken: list[int] = []
        while len(taken) < most and not self.is_complete and self.allowed().bit_count() == 1:
            token_id = self.allowed().bit_length() - 1
            if self.accept([token_id]):
                taken.append(token_id)
        return taken

    def _allow(self) -> int:
        if self._state is None or self._must_close:
            return self._next_of_closing()
        allowed = self._vocabulary.allowed(self._state)
        if self._state.is_error() or not allowed:
            # The grammar has become too complex: what remains is the way to the end.
            self._state = None
            return self._next_of_closing()
        spare = self._length - self.position - len(self._closing)
        if spare < _SHORT and allowed.bit_count() <= _FEW:
            effort = Effort(SOME_STATES)
            fitting = (each for each in members(allowed) if self._fits(self._state, each, effort))
            return as_set(fitting) or self._next_of_closing()
        return allowed if spare else self._next_of_closing()

    def _next_of_closing(self) -> int:
        return 1 << self._closing[0] if self._closing else self._vocabulary.stops

    def _follow_closing(self) -> int:
        """Commit the closing's next token."""
        closing = self._closing[1:]
        self._move(None, 1, closing, has_ended=not closing)
        return 1

    def _move(
        self, state: LLMatcher | None, count: int, closing: list[int], has_ended: bool
    ) -> None:
        self._state = state
        self.position += count
        self._closing = closing
        self._must_close = False
        is_full = self.position == self._length
        self.is_complete = has_ended or is_full or (state is not None and state.is_stopped())

    def _walk(self, state: LLMatcher, tokens: Sequence[int]) -> Iterator[LLMatcher]:
        """The states after one token, after two, and so on, as far as each was allowed; the
        first is."""
        for index, token_id in enumerate(tokens):
            if index and not holds(self._vocabulary.allowed(state), token_id):
                return
            state = state.deep_copy()
            if not state.consume_token(token_id):
                return
            yield state
            if holds(self._vocabulary.stops, token_id):
                return

    def _fits(self, state: LLMatcher, token_id: int, effort: Effort) -> bool:
        """Whether a closing is left after a token at the frontier."""
        if holds(self._vocabulary.stops, token_id):
            return True
        ahead = state.deep_copy()
        if not ahead.consume_token(token_id):
            return False
        if len(self._closing) <= _SEARCHED:
            return self._close(ahead, [token_id], effort) is not None
        return self._leftover(ahead, [token_id]) is not None

    def _close(self, state: LLMatcher, tokens: Sequence[int], effort: Effort) -> list[int] | None:
        """A closing from a state that the tokens led to, if there is one with room for it."""
        found = self._leftover(state, tokens)
        if found is not None:
            return found
        return find_closing(state, self._vocabulary, self._room(tokens), effort)

    def _leftover(self, state: LLMatcher, tokens: Sequence[int]) -> list[int] | None:
        """The same, if the known closing is of use."""
        room = self._room(tokens)
        fitting = (rest for rest in self._leftovers(tokens) if len(rest) <= room)
        return next((rest for rest in fitting if keeps_closing(state, rest)), None)

    def _room(self, tokens: Sequence[int]) -> int:
        return self._length - self.position - len(tokens)

    def _leftovers(self, tokens: Sequence[int]) -> Iterator[list[int]]:
        """What may remain of the closing after the tokens: what they did not write of it, all of
        it, or a little less."""
        written, known, count = self._vocabulary.spell(tokens), b"", 0
        while len(known) < len(written) and count < len(self._closing):
            known += self._vocabulary.spell(self._closing[count : count + 1])
            count += 1
        if known.startswith(written):
            head = self._vocabulary.encode(known[len(written) :])
            yield [*head, *self._closing[count:]]
        for skipped in range(min(_MAX_SKIPPED, len(self._closing)) + 1):
            yield self._closing[skipped:]
