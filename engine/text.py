"""The text of a completion while it forms. Knows tokens' bytes; knows no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from diffusiongpt.engine.frame import Change
from diffusiongpt.engine.shares import Shares, UnitDecoder
from diffusiongpt.engine.stop import StopSearch


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
        stop: non-empty strings that end the completion and are not part of it, or a search for
            them that has read nothing.
        watch: whether updates carry `set` and `unset`.
        end_token_ids: content never goes past the first of these tokens; `end` is then its
            position. Empty when the request ignores the end of text.
    """

    def __init__(
        self,
        tokenizer_bytes: Callable[[int], bytes],
        length: int,
        stop: Sequence[str] | StopSearch = (),
        watch: bool = False,
        *,
        end_token_ids: Collection[int] = (),
    ) -> None:
        self._bytes_of = tokenizer_bytes
        self._length = length
        self._end_token_ids = frozenset(end_token_ids)
        self._ids: list[int | None] = [None] * length
        self._shares = Shares(self._bytes, length) if watch else None
        self._search = stop.fresh() if isinstance(stop, StopSearch) else StopSearch(stop)
        self._decoder = UnitDecoder()
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

    @property
    def is_full(self) -> bool:
        """Whether every position was read into the text, and none can take another token."""
        return self._read == self._length

    def commit(
        self,
        tokens: Iterable[tuple[int, int | None, float]],
        *,
        editable_from: int | None = None,
    ) -> TextUpdate:
        """Fill positions, or give filled ones another token or the mask again.

        Args:
            tokens: (position, token id or None for the mask, confidence of the token).
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

    def _fill(self, position: int, token_id: int | None, confidence: float) -> int:
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
            is_edit = None not in (before, token_id) and before != token_id
            self._shares.fill(position, confidence, is_edit=is_edit)
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
            changes, masked = self._shares.update(filled)
            unset = (*unset, *masked)
        return TextUpdate(
            set=changes, unset=unset, content=content, settled=self._settled, stopped=stopped
        )
