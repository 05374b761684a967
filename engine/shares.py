"""Which characters of a forming text belong to which position. Knows bytes; knows no tokens.

Every byte belongs to a *unit*: one character, or one stretch of bytes that can never be part
of a character and is shown as U+FFFD, exactly as `bytes.decode("utf-8", errors="replace")`
draws the line. A unit is one character of the text and it belongs to the position that holds
its first byte; the characters of a position's units are the position's *share*. Whether a byte
opens a unit depends on at most three bytes before it, and what becomes of a unit on at most
three bytes after its first one, so a commit is looked at locally, however long the canvas is.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator

from diffusiongpt.engine.frame import Change, ChangeKind

MAX_CONTINUATION_BYTES = 3  # of one UTF-8 character

_CONTINUATION = bytes(range(0x80, 0xC0))
_FIRST_LEAD_BYTE = 0xC0
_LONGEST_LEAD = b"\xf1"  # takes any three continuation bytes


class UnitDecoder:
    """Decodes UTF-8 piece by piece; a unit gives its character once no byte can change it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def has_open_unit(self) -> bool:
        """Whether the last bytes may become a character with those that follow."""
        return bool(self._decoder.getstate()[0])

    def decode(self, data: bytes, final: bool = False) -> str:
        """The characters that are decided by now; `final` closes an open unit."""
        text = self._decoder.decode(data, final)
        pending = self._decoder.getstate()[0]
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
            # Half of a surrogate is never a character, but CPython waits for its third byte.
            text += self._decoder.decode(b"", final=True)
        return text


class Shares:
    """Every position's share as the watcher knows it. Looks at bytes near a change only.

    Bytes beside a masked position may still join a character with bytes that are not there
    yet; until that is decided they have no text, so that nothing flickers.
    """

    def __init__(self, bytes_at: Callable[[int], bytes | None], length: int) -> None:
        self._bytes_at = bytes_at
        self._end = self._shown = length  # where the text ends, and where its shares do
        self._texts: list[str | None] = [None] * length
        self._confidence = [0.0] * length
        self._kind: list[ChangeKind] = ["unmask"] * length
        self._empty = _EmptyPositions(length)
        self._touched: set[int] = set()
        self._shortened: dict[int, int] = {}

    def fill(self, position: int, confidence: float, *, is_edit: bool) -> None:
        """Note that a position holds a token now, or another one than before, or the mask."""
        data = self._bytes_at(position)
        self._confidence[position] = confidence
        if data is None:
            self._kind[position] = "unmask"
        elif is_edit:
            self._kind[position] = "edit"
        self._empty.set(position, data == b"")

    def shorten(self, position: int, num_characters: int) -> None:
        """Keep only the first characters of a position's share."""
        self._shortened[position] = num_characters
        self._touched.add(position)

    def hide_from(self, end: int) -> tuple[int, ...]:
        """Leave no share from `end` on; the positions that had been set there."""
        unset = tuple(
            position for position in range(end, self._shown) if self._texts[position] is not None
        )
        for position in unset:
            self._texts[position] = None
        self._shown = end
        return unset

    def end_at(self, end: int) -> tuple[int, ...]:
        """Let the text end at `end`, whatever bytes follow; the positions that lose theirs."""
        self._end = end
        self._touched.update(self._affected_before(end))
        return self.hide_from(end)

    def update(self, changed: Iterable[int]) -> tuple[tuple[Change, ...], tuple[int, ...]]:
        """The shares that differ from those of the update before, and positions masked again."""
        for position in changed:
            self._touched.add(position)
            self._touched.update(self._affected_before(position))
            self._touched.update(self._affected_after(position))
        changes, masked = [], []
        for position in sorted(self._touched):
            if position >= self._shown:
                break
            if self._bytes_at(position) is None:
                if self._texts[position] is not None:
                    masked.append(position)
                self._texts[position] = None
                continue
            text = self._share(position)
            if text != self._texts[position]:
                self._texts[position] = text
                changes.append(
                    Change(position, text, self._confidence[position], self._kind[position])
                )
        self._touched.clear()
        return tuple(changes), tuple(masked)

    def _affected_before(self, position: int) -> Iterator[int]:
        """The position whose last unit may reach up to this one."""
        num_bytes = 0
        for before, data in self._bytes_before(position):
            if data is None:
                return
            num_trailing = len(data) - len(data.rstrip(_CONTINUATION))
            num_bytes += num_trailing
            if num_bytes > MAX_CONTINUATION_BYTES:
                return
            if num_trailing < len(data):
                if data[-1 - num_trailing] >= _FIRST_LEAD_BYTE:
                    yield before
                return

    def _affected_after(self, position: int) -> Iterator[int]:
        """The positions whose first bytes may continue a unit that reaches up to this one."""
        num_bytes = 0
        for after, data in self._bytes_after(position):
            if data is None or data[0] not in _CONTINUATION:
                return
            yield after
            num_bytes += len(data)
            if num_bytes >= MAX_CONTINUATION_BYTES:
                return

    def _bytes_before(self, position: int) -> Iterator[tuple[int, bytes | None]]:
        """Positions with bytes, leftwards; a mask gives None and is the last."""
        while (position := self._empty.before(position)) >= 0:
            data = self._bytes_at(position)
            yield position, data
            if data is None:
                return

    def _bytes_after(self, position: int) -> Iterator[tuple[int, bytes | None]]:
        """Positions with bytes, rightwards up to the end; a mask gives None and is the last."""
        while (position := self._empty.after(position)) < self._end:
            data = self._bytes_at(position)
            yield position, data
            if data is None:
                return

    def _share(self, position: int) -> str:
        """A position's share as the canvas stands."""
        data = self._bytes_at(position) or b""
        text = data.decode("ascii") if data.isascii() else self._own_units(position, data)
        return text[: self._shortened.get(position)]

    def _own_units(self, position: int, data: bytes) -> str:
        """The characters of the units that begin among the bytes of a position."""
        decoder = UnitDecoder()
        if data[0] in _CONTINUATION:
            decoder.decode(self._lead_in(position))
        has_foreign_unit = decoder.has_open_unit
        text = decoder.decode(data)
        if has_foreign_unit:
            if not text:
                return ""
            text = text[1:]
        return text + self._complete(position, decoder) if decoder.has_open_unit else text

    def _lead_in(self, position: int) -> bytes:
        """The bytes before a position that decide whether its first bytes open a unit.

        A mask may become the lead byte of the longest character, so it is read as one: the
        bytes that it would claim have no text yet.
        """
        lead_in = b""
        for _, data in self._bytes_before(position):
            if data is None:
                return _LONGEST_LEAD + lead_in
            lead_in = data[-MAX_CONTINUATION_BYTES:] + lead_in
            if len(lead_in) >= MAX_CONTINUATION_BYTES or lead_in.strip(_CONTINUATION):
                break
        return lead_in

    def _complete(self, position: int, decoder: UnitDecoder) -> str:
        """The character of the unit that a position leaves open, "" while a mask decides it."""
        for _, data in self._bytes_after(position):
            if data is None:
                return ""
            if text := decoder.decode(data[:MAX_CONTINUATION_BYTES]):
                return text[0]
        return decoder.decode(b"", final=True)


class _EmptyPositions:
    """Positions whose token has no bytes, stepped over in near constant time.

    Two forests of shortcuts, shortened on every walk (disjoint sets): a tail of thousands of
    end-of-text tokens would otherwise be walked through at every commit beside it.
    """

    def __init__(self, length: int) -> None:
        self._empty = bytearray(length + 1)
        self._before = list(range(-1, length))
        self._after = list(range(1, length + 2))

    def before(self, position: int) -> int:
        """The nearest position to the left that is masked or has bytes; -1 at the start."""
        return self._follow(self._before, position)

    def after(self, position: int) -> int:
        """The nearest position to the right that is masked or has bytes; or the length."""
        return self._follow(self._after, position)

    def set(self, position: int, empty: bool) -> None:
        """Note whether the token of a position has no bytes."""
        if self._empty[position] and not empty:
            self._forget_shortcuts(position)
        self._empty[position] = empty

    def _follow(self, shortcuts: list[int], position: int) -> int:
        target = shortcuts[position]
        while target >= 0 and self._empty[target]:
            target = shortcuts[target]
        while (following := shortcuts[position]) != target:
            shortcuts[position] = target
            position = following
        return target

    def _forget_shortcuts(self, position: int) -> None:
        """Reset what leads over a position, for an edit gives it bytes."""
        right = position + 1
        self._before[right] = right - 1
        while self._empty[right]:
            right += 1
            self._before[right] = right - 1
        left = position - 1
        while left >= 0:
            self._after[left] = left + 1
            if not self._empty[left]:
                break
            left -= 1
