"""The text of a completion while it forms. Knows bytes and characters; knows no tensors.

Every byte belongs to a *unit*: one character, or one stretch of bytes that can never be part
of a character and is shown as U+FFFD, exactly as `bytes.decode("utf-8", errors="replace")`
draws the line. A unit is one character of the text and it belongs to the position that holds
its first byte; the characters of a position's units are the position's *share*. Whether a byte
opens a unit depends on at most three bytes before it, and what becomes of a unit on at most
three bytes after its first one, so a commit is looked at locally, however long the canvas is.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from diffusiongpt.engine.frame import Change, ChangeKind

MAX_CONTINUATION_BYTES = 3  # of one UTF-8 character

_CONTINUATION = bytes(range(0x80, 0xC0))
_FIRST_LEAD_BYTE = 0xC0
_LONGEST_LEAD = b"\xf1"  # takes any three continuation bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextUpdate:
    """What one call changed; see `Frame` for `set`, `unset`, `content` and `settled`.

    Attributes:
        stopped: a stop string was found. The text is cut right before it, and later commits
            change nothing.
    """

    set: tuple[Change, ...] = ()
    unset: tuple[int, ...] = ()
    content: str = ""
    settled: int = 0
    stopped: bool = False

    def followed_by(self, later: TextUpdate) -> TextUpdate:
        """This update and the one after it, as one update."""
        changes = {change.position: change for change in (*self.set, *later.set)}
        for position in later.unset:
            changes.pop(position, None)
        unset = {*self.unset, *later.unset} - changes.keys()
        return TextUpdate(
            set=tuple(changes[position] for position in sorted(changes)),
            unset=tuple(sorted(unset)),
            content=self.content + later.content,
            settled=later.settled,
            stopped=self.stopped or later.stopped,
        )


class _Decoder:
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


class TextCanvas:
    """A completion's positions as text: settled content, and every position's share if watched.

    The final text is `b"".join(bytes of positions < end).decode("utf-8", errors="replace")`,
    cut before the stop string whose occurrence starts earliest, and it is the same whatever
    the order and the size of the commits were. Stop strings that start together cut at the
    same place, so ties need no rule; one that starts later waits until no earlier one can
    complete.

    Args:
        tokenizer_bytes: the bytes of a token, b"" for special tokens.
        length: positions in the completion's canvas.
        stop: non-empty strings that end the completion and are not part of it.
        watch: whether updates carry `set` and `unset`.
        end_token_ids: content never goes past the first of these tokens; `end` is then its
            position. Empty when the request ignores the end of text.
    """

    def __init__(
        self,
        tokenizer_bytes: Callable[[int], bytes],
        length: int,
        stop: Sequence[str] = (),
        watch: bool = False,
        *,
        end_token_ids: Collection[int] = (),
    ) -> None:
        self._bytes_of = tokenizer_bytes
        self._length = length
        self._end_token_ids = frozenset(end_token_ids)
        self._ids: list[int | None] = [None] * length
        self._shares = _Shares(self._bytes, length) if watch else None
        self._search = StopSearch(stop)
        self._decoder = _Decoder()
        self._read = 0  # leading positions that went through the decoder
        self._held = ""  # decoded, not yet content
        self._num_content = 0  # characters of content so far
        # Units opened up to each position of settled..read (inclusive), and before them.
        self._opened: deque[int] = deque()
        self._num_settled_units = 0
        self._settled = 0
        self._end: int | None = None

    @property
    def end(self) -> int | None:
        """Where the content ends, once the filled prefix has come so far; else None.

        The position of an end-of-text token, or the number of positions with a share in the
        text before a stop string. It is what `finish` should be called with.
        """
        return self._end

    def commit(
        self,
        tokens: Iterable[tuple[int, int, float]],
        *,
        editable_from: int | None = None,
    ) -> TextUpdate:
        """Fill positions, or give filled ones another token.

        Args:
            tokens: (position, token id, confidence of the token).
            editable_from: first position that a later commit may give another token; nothing
                from there on settles. None when filled positions stay as they are.

        Raises:
            ValueError: a position outside the canvas, or another token for one that was read
                into the content.
        """
        if self._search.found is not None:
            return TextUpdate(settled=self._settled, stopped=True)
        filled = [self._fill(*token) for token in tokens]
        self._read_on(self._length if editable_from is None else editable_from)
        return self._update(filled)

    def finish(self, end: int) -> TextUpdate:
        """End the completion: only positions before `end` are content, the others are unset.

        A masked position before `end` (of an aborted request) ends the content there. An
        incomplete character at the end becomes U+FFFD.

        Raises:
            ValueError: `end` is outside the canvas or before a position whose text was read
                into the content already.
        """
        if self._search.found is not None:
            return TextUpdate(settled=self._settled, stopped=True)
        if not self._read <= end <= self._length:
            raise ValueError(f"end must be in {self._read}..{self._length}, got {end}")
        self._read_on(end, through_end_tokens=True)
        tail = self._decoder.decode(b"", final=True)
        self._search.feed(tail)
        self._search.finish()
        self._held += tail
        self._end = self._read
        return self._update([], end=self._read)

    def _bytes(self, position: int) -> bytes | None:
        """The bytes of a position, None while it is masked."""
        token_id = self._ids[position]
        return None if token_id is None else self._bytes_of(token_id)

    def _fill(self, position: int, token_id: int, confidence: float) -> int:
        if not 0 <= position < self._length:
            raise ValueError(f"position must be in 0..{self._length - 1}, got {position}")
        before = self._ids[position]
        if position < self._read and before != token_id:
            raise ValueError(
                f"position {position} is read into the content, only positions from "
                f"{self._read} on can take another token"
            )
        self._ids[position] = token_id
        if self._shares:
            self._shares.fill(position, confidence, is_edit=before not in (None, token_id))
        return position

    def _read_on(self, limit: int, *, through_end_tokens: bool = False) -> None:
        """Decode the filled positions that follow those already read, up to `limit`."""
        while self._read < limit and self._search.found is None:
            token_id = self._ids[self._read]
            if token_id is None:
                return
            if token_id in self._end_token_ids and not through_end_tokens:
                self._end = self._read
                return
            text = self._decoder.decode(self._bytes_of(token_id))
            self._held += text
            self._search.feed(text)
            incomplete = self._decoder.has_open_unit
            self._opened.append(self._num_content + len(self._held) + incomplete)
            self._read += 1

    def _update(self, filled: list[int], end: int | None = None) -> TextUpdate:
        num_new = self._search.num_safe - self._num_content
        content, self._held = self._held[:num_new], self._held[num_new:]
        self._num_content += num_new
        while self._opened and self._opened[0] <= self._num_content:
            self._num_settled_units = self._opened.popleft()
            self._settled += 1
        stopped = self._search.found is not None
        changes: tuple[Change, ...] = ()
        unset: tuple[int, ...] = ()
        num_kept = self._num_content - self._num_settled_units if stopped else 0
        if stopped:
            self._settled += bool(num_kept)
            self._end = self._settled
        if self._shares:
            if num_kept:
                self._shares.shorten(self._settled - 1, num_kept)
            if stopped:
                unset = self._shares.hide_from(self._settled)
            elif end is not None:
                unset = self._shares.end_at(end)
            changes = self._shares.update(filled)
        return TextUpdate(
            set=changes, unset=unset, content=content, settled=self._settled, stopped=stopped
        )


class _Shares:
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
        """Note that a position holds a token now, or another one than before."""
        self._confidence[position] = confidence
        if is_edit:
            self._kind[position] = "edit"
        self._empty.set(position, not self._bytes_at(position))

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

    def update(self, filled: Iterable[int]) -> tuple[Change, ...]:
        """The shares that differ from those of the update before."""
        for position in filled:
            self._touched.add(position)
            self._touched.update(self._affected_before(position))
            self._touched.update(self._affected_after(position))
        changes = []
        for position in sorted(self._touched):
            if position >= self._shown:
                break
            text = self._share(position)
            if text != self._texts[position]:
                self._texts[position] = text
                changes.append(
                    Change(position, text, self._confidence[position], self._kind[position])
                )
        self._touched.clear()
        return tuple(changes)

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
        decoder = _Decoder()
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

    def _complete(self, position: int, decoder: _Decoder) -> str:
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


class StopSearch:
    """Finds the stop string whose occurrence starts earliest in a text that grows.

    An Aho-Corasick automaton: each character is looked at once, however many stop strings
    there are. Nothing is found while a stop string that starts earlier can still complete.

    Attributes:
        found: where the stop string starts, in characters, once that is certain; else None.
        num_safe: leading characters that no stop string can take away any more.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.found: int | None = None
        self.num_safe = 0
        self._num_characters = 0
        self._candidate: int | None = None
        self._state = 0
        self._children: list[dict[str, int]] = [{}]
        self._depth = [0]  # characters of a stop string that the state has seen
        self._matched = [0]  # length of the longest stop string that ends in the state
        self._fallback = [0]  # the state of the longest proper suffix
        for text in stop:
            self._add(text)
        self._link()

    def feed(self, text: str) -> None:
        """Read on; does nothing once a stop string is found."""
        if not self._children[0]:
            self._num_characters = self.num_safe = self._num_characters + len(text)
            return
        for character in text:
            if self.found is not None:
                return
            self._step(character)

    def finish(self) -> None:
        """No more text comes, so what has not completed by now never will."""
        if self.found is None:
            self.found = self._candidate
            self.num_safe = self._num_characters if self.found is None else self.found

    def _add(self, text: str) -> None:
        state = 0
        for character in text:
            if character not in self._children[state]:
                self._children[state][character] = len(self._children)
                self._children.append({})
                self._depth.append(self._depth[state] + 1)
                self._matched.append(0)
                self._fallback.append(0)
            state = self._children[state][character]
        self._matched[state] = len(text)

    def _link(self) -> None:
        """Give every state its fallback, the short ones first."""
        queue = deque(self._children[0].values())
        while queue:
            state = queue.popleft()
            fallback = self._fallback[state]
            self._matched[state] = self._matched[state] or self._matched[fallback]
            for character, child in self._children[state].items():
                self._fallback[child] = self._next(fallback, character)
                queue.append(child)

    def _next(self, state: int, character: str) -> int:
        while state and character not in self._children[state]:
            state = self._fallback[state]
        return self._children[state].get(character, 0)

    def _step(self, character: str) -> None:
        self._state = self._next(self._state, character)
        self._num_characters += 1
        if matched := self._matched[self._state]:
            start = self._num_characters - matched
            if self._candidate is None or start < self._candidate:
                self._candidate = start
        alive = self._num_characters - self._depth[self._state]
        if self._candidate is not None and self._candidate <= alive:
            self.found = self.num_safe = self._candidate
        else:
            self.num_safe = alive
