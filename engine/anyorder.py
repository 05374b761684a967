"""Keeps stretches of a canvas within regular languages, filled in any order.

Each stretch, a hole or a completion, has the states that its tokens may have led to before each
position, and those from which the rest may still become whole (forward and backward over the
automaton, a mask standing for any token). A token may be committed where it leads from the first
to the second: then, and only then, some text of the language has it there beside all that is
committed. So the first of a step's draws is always kept, and each other one if it still may be
after those before it. Which come first is what the model was surest of before anything was drawn:
the order knows nothing of the draws, and noise depends on position and token alone, so what is
kept is what would have been drawn with the earlier ones in place.

What is committed may be revised. The states before a position and after it know nothing of its
own token, so they tell in the same way what could take its place. A mask that comes back can only
widen what the rest may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

from diffusiongpt.engine.lifted import LiftedAutomaton, States


class Stretch:
    """Positions start..stop of a completion, whose text is a word of an automaton's language."""

    def __init__(self, automaton: LiftedAutomaton, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self._automaton = automaton
        self._tokens: list[int | None] = [None] * (stop - start)
        self._before: list[States] = [automaton.first] * (stop - start + 1)
        self._after: list[States] = [automaton.last] * (stop - start + 1)
        self._open: dict[int, int] = {}
        for index in range(stop - start):
            self._before[index + 1] = automaton.after(self._before[index], None)
        for index in reversed(range(stop - start)):
            self._after[index] = automaton.before(self._after[index + 1], None)

    @property
    def is_full(self) -> bool:
        """Whether every position is committed."""
        return None not in self._tokens

    def allowed(self, position: int) -> int:
        """The tokens that may stand at a position beside all others, at least one: to be committed
        where it is masked, to take the place of its own where it is filled."""
        index = position - self.start
        if index not in self._open:
            self._open[index] = self._automaton.between(self._before[index], self._after[index + 1])
        return self._open[index]

    def accept(self, position: int, token_id: int) -> bool:
        """Commit a token, or put it in the place of another, if it may stand there."""
        index = position - self.start
        before, after = self._before[index], self._after[index + 1]
        if not self._automaton.leads(before, token_id, after):
            return False
        self._tokens[index] = token_id
        self._repair(index)
        return True

    def release(self, position: int) -> None:
        """Put the mask back on a position."""
        index = position - self.start
        self._tokens[index] = None
        self._repair(index)

    def masked(self, start: int, stop: int) -> Iterator[int]:
        """The masked positions among start..stop."""
        return (each for each in self._among(start, stop) if not self.is_filled(each))

    def filled(self, start: int, stop: int) -> Iterator[int]:
        """The others."""
        return (each for each in self._among(start, stop) if self.is_filled(each))

    def is_filled(self, position: int) -> bool:
        """Whether a position holds a token."""
        return self._tokens[position - self.start] is not None

    def _among(self, start: int, stop: int) -> range:
        return range(max(start, self.start), min(stop, self.stop))

    def is_past_end(self, position: int) -> bool:
        """Whether whatever is written before a position, the text has ended there."""
        index = position - self.start
        states = self._before[index] & self._after[index]
        return not states[: self._automaton.end].any()

    def _repair(self, index: int) -> None:
        """Carry a changed token forward and backward, as far as it changes anything."""
        for each in range(index, len(self._tokens)):
            states = self._automaton.after(self._before[each], self._tokens[each])
            if (states == self._before[each + 1]).all():
                break
            self._before[each + 1] = states
            self._open.pop(each + 1, None)
        for each in range(index, -1, -1):
            states = self._automaton.before(self._after[each + 1], self._tokens[each])
            if (states == self._after[each]).all():
                break
            self._after[each] = states
            self._open.pop(each - 1, None)


class AnyOrderGuide:
    """What may be committed where in the stretches of one completion, and what was.

    Attributes:
        seconds: what finding and checking tokens took so far.

    Args:
        num_free: positions to fill that are in no stretch: anything may be committed there.
    """

    is_in_order = False

    def __init__(self, stretches: Sequence[Stretch], *, num_free: int = 0) -> None:
        self._stretches = stretches
        self._num_free = num_free
        self._free_filled: set[int] = set()
        self.seconds = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to fill."""
        is_full = all(each.is_full for each in self._stretches)
        return is_full and len(self._free_filled) == self._num_free

    def open_sets(self, start: int, stop: int) -> dict[int, int]:
        """Of each masked position among start..stop the tokens that may be committed there."""
        begun = perf_counter()
        sets = {
            position: each.allowed(position)
            for each in self._stretches
            for position in each.masked(start, stop)
        }
        self.seconds += perf_counter() - begun
        return sets

    def held_sets(self, start: int, stop: int) -> dict[int, int]:
        """Of each filled position of a stretch among start..stop the tokens that could stand there
        beside all others, its own among them."""
        begun = perf_counter()
        sets = {
            position: each.allowed(position)
            for each in self._stretches
            for position in each.filled(start, stop)
        }
        self.seconds += perf_counter() - begun
        return sets

    def accept_at(
        self, positions: Sequence[int], tokens: Sequence[int], sureness: Sequence[float]
    ) -> list[bool]:
        """Take over tokens drawn at positions, the surest first; which of them are committed.

        Those for filled positions, edits, come after the others, so that where there is a mask
        one is filled.
        """
        begun = perf_counter()
        is_edit = [self._is_filled(each) for each in positions]
        accepted = [False] * len(positions)
        for index in sorted(
            range(len(positions)), key=lambda each: (is_edit[each], -sureness[each])
        ):
            accepted[index] = self._accept(positions[index], tokens[index])
        self.seconds += perf_counter() - begun
        return accepted

    def release(self, positions: Sequence[int]) -> None:
        """Put the mask back on filled positions."""
        begun = perf_counter()
        for position in positions:
            if stretch := self._stretch_at(position):
                stretch.release(position)
            else:
                self._free_filled.remove(position)
        self.seconds += perf_counter() - begun

    def _accept(self, position: int, token_id: int) -> bool:
        if stretch := self._stretch_at(position):
            return stretch.accept(position, token_id)
        self._free_filled.add(position)
        return True

    def _is_filled(self, position: int) -> bool:
        if stretch := self._stretch_at(position):
            return stretch.is_filled(position)
        return position in self._free_filled

    def take_forced_in(self, start: int, stop: int, most: int) -> list[tuple[int, int]]:
        """Commit what has no alternative among start..stop, `most` of it: (position, token)."""
        forced = [
            (position, allowed.bit_length() - 1)
            for position, allowed in self.open_sets(start, stop).items()
            if allowed.bit_count() == 1
        ]
        for position, token_id in forced[:most]:
            if stretch := self._stretch_at(position):
                stretch.accept(position, token_id)
        return forced[:most]

    def is_past_end(self, position: int) -> bool:
        """Whether a position lies after the end of its stretch's text, and has none."""
        stretch = self._stretch_at(position)
        return stretch is not None and stretch.is_past_end(position)

    def _stretch_at(self, position: int) -> Stretch | None:
        """The stretch that holds a position; those of free holes are in none."""
        holding = (each for each in self._stretches if each.start <= position < each.stop)
        return next(holding, None)
