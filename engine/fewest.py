"""The text of the fewest tokens that an automaton accepts, without making it deterministic.

A text in tokens is a way over parts that goes a token at a time, and the first way that comes to
the end is a shortest one. So each part is left once, with all tokens that lead on from it: the
vocabulary and the moves are followed together, byte by byte. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from diffusiongpt.engine.automaton import Assembled, Parts, TooLarge
from diffusiongpt.engine.vocabulary import Trie

MAX_LOOKS = 400_000  # at moves: about a third of a second


def find_fewest(language: Assembled, trie: Trie, limit: int) -> list[int] | None:
    """The tokens of a shortest text of a language; None if none has at most `limit`.

    Raises:
        TooLarge: it takes too many looks at moves.
    """
    ways = _Ways(language.parts, language.end, trie)
    came: dict[int, tuple[int, int]] = {language.start: (language.start, -1)}
    line = [language.start]
    for _ in range(limit + 1):
        for part in line:
            if ways.is_end(part):
                return _retrace(came, part)
        following: list[int] = []
        for part in line:
            for token_id, target in ways.after(part, came):
                came[target] = part, token_id
                following.append(target)
        line = following
    return None


def _retrace(came: dict[int, tuple[int, int]], part: int) -> list[int]:
    tokens: list[int] = []
    while (step := came[part])[1] >= 0:
        part = step[0]
        tokens.append(step[1])
    return tokens[::-1]


@dataclass(slots=True)
class _Ways:
    """What follows a part, silent moves taken; counts the looks."""

    parts: Parts
    end: int
    trie: Trie
    looks: int = 0
    known: dict[int, tuple[list[tuple[int, int, int]], bool, int]] = field(default_factory=dict)

    def is_end(self, part: int) -> bool:
        """Whether a text may end at a part."""
        return self._of(part)[1]

    def after(self, part: int, seen: dict[int, tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Tokens and the parts that they lead to, each part that was not seen once. The caller
        adds to `seen` what it is given."""
        line, found = [(0, part)], {(0, part)}
        while line:
            node, at = line.pop()
            moves, _, loops = self._of(at)
            # What lies below only goes round to a part that is known.
            if at in seen and not self.trie.below[node] & ~loops:
                continue
            for first, last, target in moves:
                for child in self._children(node, first, last):
                    if (child, target) in found:
                        continue
                    found.add((child, target))
                    token_id = self.trie.token[child]
                    if token_id >= 0 and target not in seen:
                        yield token_id, target
                    line.append((child, target))

    def _children(self, node: int, first: int, last: int) -> list[int]:
        children = self.trie.children[node]
        if first == last:
            self._spend(1)
            return [children[first]] if first in children else []
        if last - first < len(children):
            found = [children[byte] for byte in range(first, last + 1) if byte in children]
        else:
            found = [child for byte, child in children.items() if first <= byte <= last]
        self._spend(1 + len(found))
        return found

    def _of(self, part: int) -> tuple[list[tuple[int, int, int]], bool, int]:
        """The moves of a part and of those that it silently leads to, whether the end is among
        these, and a set of the bytes after which it is the same part again."""
        if part not in self.known:
            reached = self.parts.closure({part})
            moves = list(dict.fromkeys(move for each in reached for move in self.parts.moves[each]))
            self._spend(len(reached) + len(moves))
            back = leave = 0
            for first, last, target in moves:
                some = (1 << last + 1) - (1 << first)
                if target == part:
                    back |= some
                else:
                    leave |= some
            self.known[part] = moves, self.end in reached, back & ~leave
        return self.known[part]

    def _spend(self, looks: int) -> None:
        self.looks += looks
        if self.looks > MAX_LOOKS:
            raise TooLarge
