"""The text of a canvas with holes: every hole's on its own, with what is given between them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from diffusiongpt.engine.frame import Change, FinishReason
from diffusiongpt.engine.stop import StopSearch
from diffusiongpt.engine.text import TextCanvas, TextUpdate

Token = tuple[int, int | None, float]


@dataclass(slots=True, kw_only=True)
class _Run:
    """A hole, or what is given between two: positions start..stop of the region.

    Attributes:
        content: its settled text. unsent: what of that waits for the runs before it.
        settled: leading positions that stay as they are. is_whole: no more text comes.
        was_cut: a stop string has ended it.
    """

    start: int
    stop: int
    is_hole: bool
    text: TextCanvas
    content: str = ""
    unsent: str = ""
    settled: int = 0
    is_whole: bool = False
    was_cut: bool = False

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def kept(self) -> tuple[int, int]:
        """The positions that its text is of; those after a stop string are not."""
        return self.start, self.start + self.settled if self.was_cut else self.stop

    def commit(self, tokens: Sequence[Token], editable_from: int | None) -> TextUpdate:
        """What `TextCanvas.commit` says, in positions of the region."""
        if editable_from is not None:
            editable_from = min(max(editable_from - self.start, 0), self.length)
        update = self.text.commit(
            [(position - self.start, *token) for position, *token in tokens],  # type: ignore[misc]
            editable_from=editable_from,
        )
        if self.text.is_full:
            update = update.followed_by(self.text.finish(self.length))
            self.is_whole = True
        return self._note(update)

    def finish(self, end: int) -> TextUpdate:
        """What `TextCanvas.finish` says, in positions of the region."""
        self.is_whole = True
        return self._note(self.text.finish(min(max(end - self.start, 0), self.length)))

    def _note(self, update: TextUpdate) -> TextUpdate:
        self.content += update.content
        self.unsent += update.content
        self.settled = update.settled
        self.was_cut |= update.stopped
        self.is_whole |= update.stopped
        return TextUpdate(
            set=tuple(Change(each.position + self.start, *each[1:]) for each in update.set),
            unset=tuple(position + self.start for position in update.unset),
        )


@dataclass(slots=True)
class HoledText:
    """What `TextCanvas` is to a completion this is to a region with several runs.

    A stop string ends the hole in which it stands, and that hole alone: its text is cut right
    before it, and what the model commits behind it changes nothing. One that begins in a hole
    and ends in what is given is none. An incomplete character at the end of a hole is U+FFFD.
    """

    _runs: list[_Run] = field(default_factory=list)

    @classmethod
    def of_region(
        cls,
        bytes_of: Callable[[int], bytes],
        region: Sequence[int | None],
        holes: Sequence[tuple[int, int]],
        *,
        stop: Sequence[str] = (),
        watch: bool = False,
    ) -> HoledText:
        """The text of a region whose masks are the positions of `holes`; both in order."""
        edges = sorted({0, len(region), *(edge for hole in holes for edge in hole)})
        runs, search = [], StopSearch(stop)
        for start, end in pairwise(edges):
            is_hole = (start, end) in holes
            text = TextCanvas(bytes_of, end - start, search if is_hole else (), watch)
            runs.append(_Run(start=start, stop=end, is_hole=is_hole, text=text))
        return cls(runs)

    @property
    def end(self) -> int | None:
        """Where the region ends, once all of its text is there."""
        return self._runs[-1].stop if all(run.is_whole for run in self._runs) else None

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        """The positions that each hole's text is of, as far as is known."""
        return tuple(run.kept for run in self._runs if run.is_hole)

    @property
    def fills(self) -> tuple[str, ...]:
        """The settled text of each hole."""
        return tuple(run.content for run in self._runs if run.is_hole)

    @property
    def fill_reasons(self) -> tuple[FinishReason, ...]:
        """Why each hole's text ends: a stop string, or the hole does."""
        return tuple(
            FinishReason.STOP if run.was_cut else FinishReason.LENGTH
            for run in self._runs
            if run.is_hole
        )

    def commit(self, tokens: Iterable[Token], *, editable_from: int | None = None) -> TextUpdate:
        """Fill positions, or give filled ones another token or the mask again."""
        starts = [run.start for run in self._runs]
        own: list[list[Token]] = [[] for _ in self._runs]
        for token in tokens:
            own[bisect_right(starts, token[0]) - 1].append(token)
        updates = [
            run.commit(theirs, editable_from)
            for run, theirs in zip(self._runs, own, strict=True)
            if not run.is_whole
        ]
        return self._sum_up(updates)

    def finish(self, end: int) -> TextUpdate:
        """End the text: only positions before `end` are content, the others are unset."""
        return self._sum_up([run.finish(end) for run in self._runs if not run.is_whole])

    def _sum_up(self, updates: Sequence[TextUpdate]) -> TextUpdate:
        """One update of several runs; text waits until all that is before it is there."""
        content, settled = "", 0
        for run in self._runs:
            content += run.unsent
            run.unsent = ""
            settled = run.stop if run.is_whole else run.start + run.settled
            if not run.is_whole:
                break
        is_over = self.end is not None and any(run.was_cut for run in self._runs)
        return TextUpdate(
            set=tuple(change for update in updates for change in update.set),
            unset=tuple(position for update in updates for position in update.unset),
            content=content,
            settled=settled,
            stopped=is_over,
        )
