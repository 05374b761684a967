"""What strings of a JSON schema may hold between their quotes, as parts of automata. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from diffusiongpt.engine.automaton import NotRegular, Parts
from diffusiongpt.engine.characters import Ranges
from diffusiongpt.engine.expression import Expression, parse
from diffusiongpt.engine.json_formats import FORMATS
from diffusiongpt.engine.json_values import spell

_LOOKS_OF_A_CHARACTER = 50  # of a pattern that is read
_ANY_CHARACTER: Ranges = ((0, 0x10FFFF),)

# Adds a language to parts, from one to another; raises NotRegular, TooLarge.
Fragment = Callable[[Parts, int, int], None]


def inside(key: str) -> bytes:
    """A key as it is spelled between its quotes."""
    return spell(key)[1:-1].encode()


def pattern_of(pattern: str, reader: type[Expression] = Expression) -> Fragment:
    """Texts in which a pattern is found."""

    def add(parts: Parts, start: int, end: int) -> None:
        parts.effort.spend(_LOOKS_OF_A_CHARACTER * len(pattern))
        try:
            reader(parts, in_json=True).add_search(pattern, start, end)
        except NotRegular as error:
            raise NotRegular(f"the pattern {pattern!r:.40} is read in more than one way") from error

    return add


def format_of(name: str, reader: type[Expression] = Expression) -> Fragment:
    """Texts of a format; raises NotRegular where it has no expression."""
    if name not in FORMATS:
        raise NotRegular(f"the format {name!r:.40} has no expression here")
    tree = parse(FORMATS[name])
    return lambda parts, start, end: reader(parts, in_json=True).add_sequence(tree, start, end)


def length_of(least: float, most: float | None) -> Fragment:
    """Texts of so many characters."""

    def add(parts: Parts, start: int, end: int) -> None:
        expression = Expression(parts, in_json=True)
        count = 0
        while count < least or (most is not None and count < most):
            if count >= least:
                parts.silent[start].append(end)
            start, before = parts.new(), start
            expression.add_characters(_ANY_CHARACTER, before, start)
            count += 1
        if most is None:
            expression.add_any(start, end)
        elif most >= least:
            parts.silent[start].append(end)

    return add
