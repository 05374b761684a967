"""The numbers and constants of JSON as parts of an automaton. Torch-free.

A number within bounds is a decimal fraction without an exponent, compared digit by digit. With an
exclusive bound it has so few digits that a double tells it from the bound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from diffusiongpt.engine.automaton import NotRegular, Parts, TooLarge
from diffusiongpt.engine.expression import Expression, parse

MAX_MODULUS = 1000
_MAX_DIGITS = 320  # of a bound
_DOUBLE_DIGITS = 15  # decimals of so many digits are different doubles
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_INTEGER = r"-?(?:0|[1-9][0-9]*)"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between two numbers, or as much of that as is said.

    Attributes:
        is_open_below: whether `least` itself is excluded; `is_open_above`: whether `most` is.
    """

    least: Decimal | None = None
    most: Decimal | None = None
    is_open_below: bool = False
    is_open_above: bool = False

    @property
    def are_absent(self) -> bool:
        """Whether there is no bound."""
        return self.least is None and self.most is None

    def split(self) -> tuple[Bounds | None, Bounds | None]:
        """The numbers from zero up, and those from zero down without their sign."""
        above = below = None
        if self.most is None or self.most >= 0:
            is_cut = self.least is not None and self.least >= 0
            least, is_open = (self.least, self.is_open_below) if is_cut else (Decimal(0), False)
            above = Bounds(least, self.most, is_open, self.is_open_above)
        if self.least is None or self.least < 0:
            is_cut = self.most is not None and self.most <= 0
            most, is_open = (self.most, self.is_open_above) if is_cut else (Decimal(0), False)
            least = None if self.least is None else self.least.copy_negate()
            below = Bounds(
                None if most is None else most.copy_negate(), least, is_open, self.is_open_below
            )
        return above, below


def add_number(parts: Parts, bounds: Bounds, start: int, end: int) -> None:
    """The numbers within bounds; raises NotRegular, TooLarge."""
    if bounds.are_absent:
        Expression(parts).add_sequence(parse(_NUMBER), start, end)
        return
    for each, at in _signed(parts, bounds, start):
        _Decimals(parts, each, end).add(at)


def add_integer(parts: Parts, bounds: Bounds, start: int, end: int) -> None:
    """The integers within bounds, without fraction and exponent; raises TooLarge."""
    if bounds.are_absent:
        Expression(parts).add_sequence(parse(_INTEGER), start, end)
        return
    for each, at in _signed(parts, bounds, start):
        least, most = _whole(each)
        # There is no -0 within bounds.
        add_between(parts, max(least, int(at != start)), most, at, end)


def _signed(parts: Parts, bounds: Bounds, start: int) -> Iterator[tuple[Bounds, int]]:
    """Bounds of numbers without a sign, and the part after the sign."""
    above, below = bounds.split()
    if above is not None:
        yield above, start
    if below is not None:
        sign = parts.new()
        parts.moves[start].append((ord("-"), ord("-"), sign))
        yield below, sign


def _whole(bounds: Bounds) -> tuple[int, int | None]:
    """The least and the most integer within bounds from zero up."""
    assert bounds.least is not None
    least = math.ceil(bounds.least)
    least += bounds.is_open_below and least == bounds.least
    if bounds.most is None:
        return least, None
    most = math.floor(bounds.most)
    return least, most - (bounds.is_open_above and most == bounds.most)


def add_between(parts: Parts, least: int, most: int | None, start: int, end: int) -> None:
    """The integers least..most, none of them negative, in decimal."""
    if most is not None and most < least:
        return
    digits = len(str(least))
    longest = digits if most is None else len(str(most))
    for length in range(digits, longest + 1):
        low = max(least, 10 ** (length - 1) if length > 1 else 0)
        high = 10**length - 1 if most is None else min(most, 10**length - 1)
        _add_digits(parts, str(low), str(high), start, end)
    if most is None:
        Expression(parts).add_sequence(parse(f"[1-9][0-9]{{{digits},}}"), start, end)


def _add_digits(parts: Parts, low: str, high: str, start: int, end: int) -> None:
    """The numbers low..high, which have the same length."""
    reached = {(True, True): start}
    for index, (first, last) in enumerate(zip(low, high, strict=True)):
        following: dict[tuple[bool, bool], int] = {}
        for (is_low, is_high), at in reached.items():
            for digit in range(int(first) if is_low else 0, int(last) + 1 if is_high else 10):
                key = is_low and digit == int(first), is_high and digit == int(last)
                if key not in following:
                    following[key] = end if index == len(low) - 1 else parts.new()
                parts.moves[at].append((48 + digit, 48 + digit, following[key]))
        reached = following


class _Decimals:
    """The decimal fractions within bounds from zero up, compared digit by digit.

    A state of the fraction is how many of its digits are read and whether they are so far those of
    the least and of the most number.
    """

    def __init__(self, parts: Parts, bounds: Bounds, end: int) -> None:
        assert bounds.least is not None
        self._parts, self._bounds, self._end = parts, bounds, end
        self._low = _digits(bounds.least)
        self._high = None if bounds.most is None else _digits(bounds.most)
        self._length = max(len(self._low[1]), len(self._high[1]) if self._high else 0)
        self._most_digits: int | None = None
        if bounds.is_open_below or bounds.is_open_above:
            whole = max(len(str(self._low[0])), len(str(self._high[0])) if self._high else 0)
            self._most_digits = max(_DOUBLE_DIGITS - whole, 0)
        self._states: dict[tuple[int, bool, bool], int] = {}

    def add(self, start: int) -> None:
        """All of them, from a part on."""
        low, high = self._low[0], None if self._high is None else self._high[0]
        if low == high:
            self._add_whole(low, low, start, is_low=True, is_high=True)
            return
        if high is not None and high < low:
            return
        self._add_whole(low, low, start, is_low=True, is_high=False)
        self._add_whole(low + 1, None if high is None else high - 1, start)
        if high is not None:
            self._add_whole(high, high, start, is_low=False, is_high=True)

    def _add_whole(
        self,
        least: int,
        most: int | None,
        start: int,
        *,
        is_low: bool = False,
        is_high: bool = False,
    ) -> None:
        """Numbers whose whole part is least..most."""
        whole, point = self._parts.new(), self._parts.new()
        add_between(self._parts, least, most, start, whole)
        if self._may_end(0, is_low, is_high):
            self._parts.silent[whole].append(self._end)
        self._parts.moves[whole].append((ord("."), ord("."), point))
        self._add_digits_of(point, 0, is_low, is_high)

    def _may_end(self, index: int, is_low: bool, is_high: bool) -> bool:
        """Whether what has been read is within bounds: what is left of a bound is not there."""
        if is_low and (self._low[1][index:].strip("0") or self._bounds.is_open_below):
            return False
        return not (
            is_high
            and self._high is not None
            and not self._high[1][index:].strip("0")
            and self._bounds.is_open_above
        )

    def _state(self, index: int, is_low: bool, is_high: bool) -> int:
        """The part in which so many digits of a fraction are read."""
        if self._most_digits is None:
            # Beyond the digits of both bounds there are only zeros to compare with.
            index = min(index, self._length)
        key = index, is_low, is_high
        if key not in self._states:
            self._states[key] = self._parts.new()
            if self._may_end(*key):
                self._parts.silent[self._states[key]].append(self._end)
            self._add_digits_of(self._states[key], *key)
        return self._states[key]

    def _add_digits_of(self, at: int, index: int, is_low: bool, is_high: bool) -> None:
        if index == self._most_digits:
            return
        first = int((self._low[1] + "0" * (index + 1))[index]) if is_low else 0
        last = 9
        if is_high and self._high is not None:
            last = int((self._high[1] + "0" * (index + 1))[index])
        for digit in range(first, last + 1):
            to = self._state(index + 1, is_low and digit == first, is_high and digit == last)
            self._parts.moves[at].append((48 + digit, 48 + digit, to))


def _digits(bound: Decimal) -> tuple[int, str]:
    """A number from zero up: its whole part, and the digits of its fraction."""
    if abs(bound.adjusted()) > _MAX_DIGITS:
        raise TooLarge
    whole, _, fraction = f"{bound:f}".partition(".")
    return int(whole), fraction.rstrip("0")


def add_multiples(parts: Parts, modulus: int, start: int, end: int) -> None:
    """The integers that a number divides; raises TooLarge."""
    if modulus > MAX_MODULUS:
        raise TooLarge
    sign, zero = parts.new(), parts.new()
    parts.moves[start].append((ord("-"), ord("-"), sign))
    parts.silent[zero].append(end)
    remainders = [parts.new() for _ in range(modulus)]
    parts.silent[remainders[0]].append(end)
    for first in (start, sign):
        parts.moves[first].append((48, 48, zero))
        for digit in range(1, 10):
            parts.moves[first].append((48 + digit, 48 + digit, remainders[digit % modulus]))
    for remainder, at in enumerate(remainders):
        for digit in range(10):
            to = remainders[(10 * remainder + digit) % modulus]
            parts.moves[at].append((48 + digit, 48 + digit, to))


def spell(value: Any) -> str:
    """A value in JSON, with a space after commas alone; raises NotRegular where it has no
    spelling."""
    if isinstance(value, float) and not math.isfinite(value):
        raise NotRegular
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ":")).replace("\x7f", "\\u007f")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotRegular("a text of it holds a lone surrogate") from error
    return text


def as_decimal(value: float | int) -> Decimal:
    """A bound as it was written; raises NotRegular for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise NotRegular
    return Decimal(repr(value))
