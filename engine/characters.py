"""Sets of characters: ranges of code points, the classes of expressions, and their UTF-8.
Torch-free."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_SURROGATES, _END = 0xD800, 0x110000
# Circled and squared letters: symbols, and alphabetic all the same.
_LETTERLIKE_SIGNS = ((0x24B6, 0x24E9), (0x1F130, 0x1F189))
# Where the characters of one encoded length begin.
_LENGTHS = (0, 0x80, 0x800, 0x10000, _END)

Ranges = tuple[tuple[int, int], ...]  # of code points, first and last, in order and apart


def union(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Ranges in order, those that touch joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def complement(ranges: Ranges) -> Ranges:
    """All other characters."""
    edges = [(-1, -1), *union(ranges), (_END, _END)]
    return tuple((a[1] + 1, b[0] - 1) for a, b in pairwise(edges) if a[1] + 1 < b[0])


def intersection(one: Ranges, other: Ranges) -> Ranges:
    """The characters of both."""
    return complement(union([*complement(one), *complement(other)]))


@lru_cache(maxsize=1)
def categories() -> dict[str, tuple[Ranges, Ranges]]:
    """Of each class the characters inside, and those outside, as far as both syntaxes agree.

    A word in Python is of alphanumeric characters, in Rust (UTS 18) of alphabetic ones, marks,
    decimal digits and connectors; white space in Python includes the separators U+001C to U+001F.
    """
    codes = np.array([*range(_SURROGATES), *range(_SURROGATES + 0x800, _END)])
    texts = list(map(chr, codes.tolist()))
    kind = np.array(list(map(unicodedata.category, texts)))
    spaces = np.array(list(map(str.isspace, texts)))
    separators = (codes >= 0x1C) & (codes <= 0x1F)
    digits, unassigned = kind == "Nd", kind == "Cn"
    letters = np.char.startswith(kind, "L") | np.isin(kind, ("Nd", "Nl")) | (codes == ord("_"))
    # What either may take for part of a word: the rest is surely none.
    wordlike = letters | np.isin(kind, ("Mn", "Mc", "Me", "No", "Pc", "Cf", "Cn"))
    for first, last in _LETTERLIKE_SIGNS:
        wordlike |= (codes >= first) & (codes <= last)
    return {
        "digit": (_ranges(codes[digits]), _ranges(codes[~digits & ~unassigned])),
        "word": (_ranges(codes[letters]), _ranges(codes[~wordlike])),
        "space": (_ranges(codes[spaces & ~separators]), _ranges(codes[~spaces])),
    }


def _ranges(codes: NDArray[np.int64]) -> Ranges:
    """Codes in order, as ranges."""
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    return tuple((int(run[0]), int(run[-1])) for run in runs)


@lru_cache(maxsize=64)
def encoded(ranges: Ranges) -> Sequence[tuple[tuple[int, int], ...]]:
    """The UTF-8 of ranges, as byte ranges that combine freely."""
    return tuple(_encode(ranges))


def _encode(ranges: Ranges) -> Iterator[tuple[tuple[int, int], ...]]:
    for whole in ranges:
        for low, high in (*pairwise(_LENGTHS[:4]), (0x10000, _END)):
            for first, last in ((low, _SURROGATES - 1), (_SURROGATES + 0x800, high - 1)):
                first, last = max(whole[0], first, low), min(whole[1], last, high - 1)
                if first <= last:
                    yield from _split(chr(first).encode(), chr(last).encode())


def _split(first: bytes, last: bytes) -> Iterator[tuple[tuple[int, int], ...]]:
    """Encoded characters of one length, from first to last."""
    if len(first) == 1 or first[0] == last[0]:
        if len(first) == 1:
            yield ((first[0], last[0]),)
            return
        yield from (((first[0], first[0]), *rest) for rest in _split(first[1:], last[1:]))
        return
    lowest, highest = b"\x80" * (len(first) - 1), b"\xbf" * (len(first) - 1)
    begin, end = first[0], last[0]
    if first[1:] != lowest:
        yield from (((begin, begin), *rest) for rest in _split(first[1:], highest))
        begin += 1
    if last[1:] != highest:
        yield from (((end, end), *rest) for rest in _split(lowest, last[1:]))
        end -= 1
    if begin <= end:
        yield ((begin, end), *((0x80, 0xBF),) * len(lowest))
