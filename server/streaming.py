"""Frames to chunks of the wire.

A chunk is always an ordinary one of its route, so a stock client sees nothing but append-only
parts of an answer. What a watcher gets is one more key, `diffusion`, in a chunk without text.
Replaying those (`set`, `unset`, a `keyframe` replaces everything) up to the `end` gives exactly
the text that the parts are read from, which is the content where there is nothing else in it;
frames may be dropped for a slow reader, text may not, and the first frame after a drop is a
keyframe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from diffusiongpt.engine.frame import Change, Frame, Usage
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.options import FrameLocation, FrameMode
from diffusiongpt.server.parts import Content
from diffusiongpt.server.shapes import Shape
from diffusiongpt.server.usage import NO_USAGE, Stopwatch, summary, usage_of

FRAME_VERSION = 1
Chunk = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What every part of one answer repeats."""

    id: str
    created: int
    model: str
    object: str

    def fields(self) -> Chunk:
        """The leading fields of the JSON object."""
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
        }


@dataclass(slots=True, kw_only=True)
class Watch:
    """The canvas as the client knows it, and what it does not know yet.

    Attributes:
        shown: every set position's latest change. dirty: positions to send, unset ones too.
    """

    shown: dict[int, Change] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)

    def apply(self, frame: Frame) -> None:
        """Take over what a frame changed."""
        for change in frame.set:
            self.shown[change.position] = change
            self.dirty.add(change.position)
        for position in frame.unset:
            self.shown.pop(position, None)
            self.dirty.add(position)

    def take(self, *, everything: bool) -> tuple[list[list[Any]], list[int]]:
        """What to set and unset on the wire; with `everything` the whole canvas."""
        positions = sorted(self.shown) if everything else sorted(self.dirty & self.shown.keys())
        unset = [] if everything else sorted(self.dirty - self.shown.keys())
        self.dirty.clear()
        return [_spell_change(self.shown[position]) for position in positions], unset


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStyle:
    """How a stream is written.

    Attributes:
        mode: which frames are sent. interval: every so many. location: where in the chunk.
        include_usage: whether a usage chunk ends the stream.
    """

    mode: FrameMode = "off"
    interval: int = 1
    location: FrameLocation = "chunk"
    include_usage: bool = False


class ChunkWriter:
    """Turns one choice's frames into its chunks of a stream.

    Args:
        head: the repeated fields. shape: the route's spelling. index: of the choice.
        params: the request as the engine runs it.
    """

    def __init__(
        self,
        head: AnswerHead,
        shape: Shape,
        params: GenerationParams,
        style: StreamStyle,
        index: int = 0,
    ) -> None:
        self._head = head
        self._shape = shape
        self._params = params
        self._style = style
        self._index = index
        self._watch = Watch()
        self._reader = shape.reader()
        self._clock = Stopwatch()
        self._sequence = 0
        self._num_skipped = 0
        self._has_dropped = False
        self._has_begun = False

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the choice's thinking so far."""
        return self._reader.reasoning_tokens

    def write(self, frame: Frame, *, is_behind: bool = False) -> Iterator[Chunk]:
        """The chunks of one frame; `is_behind` drops what may be dropped."""
        if not self._has_begun:
            self._has_begun = True
            if (opening := self._shape.opening(self._index)) is not None:
                yield self._chunk(opening)
        is_last = frame.finish_reason is not None
        if self._style.mode != "off":
            self._watch.apply(frame)
            yield from self._write_frame(frame, is_last=is_last, is_behind=is_behind)
        yield from self._write_content(frame, is_last=is_last)
        if is_last:
            yield from self._write_end(frame)

    def _write_content(self, frame: Frame, *, is_last: bool) -> Iterator[Chunk]:
        parts, settled = self._reader.read(frame)
        if frame.content:
            self._clock.note_content()
            if self._style.mode != "off" and not is_last:
                yield self._frame_chunk("commit", frame, settled=frame.settled)
        # Tokens without text (a special one, part of a character or of a mark) may settle on
        # their own.
        if settled and not parts:
            parts = [Content("")]
        for part in parts:
            yield self._chunk(self._shape.piece(self._index, part, settled))
            settled = []

    def _write_frame(self, frame: Frame, *, is_last: bool, is_behind: bool) -> Iterator[Chunk]:
        if is_last:
            return
        if self._sequence == 0:
            yield self._frame_chunk(
                "begin", frame, length=frame.length, block_length=frame.block_length
            )
            # What was given shows with the first step, a draft before anything is done to it.
            if self._params.draft is not None:
                yield self._canvas_chunk("frame", frame)
            return
        self._num_skipped += 1
        if is_behind:
            self._has_dropped = True
        elif self._num_skipped >= self._style.interval:
            yield self._canvas_chunk("frame", frame)

    def _canvas_chunk(self, kind: str, frame: Frame, **fields: Any) -> Chunk:
        everything = kind == "frame" and (self._has_dropped or self._style.mode == "full")
        self._num_skipped, self._has_dropped = 0, False
        changes, unset = self._watch.take(everything=everything)
        if everything:
            kind = "keyframe"
        return self._frame_chunk(kind, frame, set=changes, unset=unset, **fields)

    def _write_end(self, frame: Frame) -> Iterator[Chunk]:
        usage = frame.usage or NO_USAGE
        if self._style.mode != "off":
            if self._has_dropped:
                yield self._canvas_chunk("frame", frame)
            yield self._canvas_chunk("end", frame, **summary(self._params, usage))
        has_called = self._reader.has_called
        closing = self._chunk(self._shape.closing(self._index, frame, has_called=has_called))
        yield closing | {"timings": self._clock.timings(usage)}

    def _frame_chunk(self, kind: str, frame: Frame, **fields: Any) -> Chunk:
        payload = {
            "v": FRAME_VERSION,
            "kind": kind,
            "seq": self._sequence,
            "block": frame.block,
            "step": frame.step,
            "steps": frame.steps,
            "masked": frame.masked,
            **fields,
        }
        self._sequence += 1
        if self._style.location == "delta":
            return self._chunk(self._shape.silence(self._index, payload))
        return self._chunk(self._shape.silence(self._index)) | {"diffusion": payload}

    def _chunk(self, choice: Chunk) -> Chunk:
        chunk = self._head.fields() | {"choices": [choice]}
        return chunk | {"usage": None} if self._style.include_usage else chunk


def usage_chunk(
    head: AnswerHead, params: GenerationParams, usage: Usage, reasoning_tokens: int = 0
) -> Chunk:
    """The last chunk of a stream whose client asked for it."""
    return head.fields() | {
        "choices": [],
        "usage": usage_of(usage, reasoning_tokens),
        "diffusion": {"kind": "usage", **summary(params, usage)},
    }


def _spell_change(change: Change) -> list[Any]:
    return [change.position, change.text, round(change.confidence, 4), change.kind]
