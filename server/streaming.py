"""Frames of the engine to chunks of the wire.

A chunk is always an ordinary `chat.completion.chunk`, so a stock client sees nothing but
append-only content. What a watcher gets is one more key, `diffusion`, in a chunk whose delta is
empty. Replaying those (`set`, `unset`, a `keyframe` replaces everything) up to the `end` gives
exactly the concatenated content; frames may be dropped for a slow reader, content may not, and
the first frame after a drop is a keyframe.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from diffusiongpt.engine.frame import Change, FinishReason, Frame, Usage
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.protocol import FrameLocation, FrameMode

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


class ChunkWriter:
    """Turns one generation's frames into the chunks of its stream.

    Args:
        head: the repeated fields. params: the request as the engine runs it.
        mode: which frames are sent. interval: every so many. location: where in the chunk.
        include_usage: whether the client asked for a usage chunk.
    """

    def __init__(
        self,
        head: AnswerHead,
        params: GenerationParams,
        *,
        mode: FrameMode = "off",
        interval: int = 1,
        location: FrameLocation = "chunk",
        include_usage: bool = False,
    ) -> None:
        self._head = head
        self._params = params
        self._mode = mode
        self._interval = interval
        self._location = location
        self._include_usage = include_usage
        self._watch = Watch()
        self._clock = Stopwatch()
        self._sequence = 0
        self._num_skipped = 0
        self._has_dropped = False
        self._has_begun = False

    def write(self, frame: Frame, *, is_behind: bool = False) -> Iterator[Chunk]:
        """The chunks of one frame; `is_behind` drops what may be dropped."""
        if not self._has_begun:
            self._has_begun = True
            yield self._chunk({"role": "assistant", "content": ""})
        is_last = frame.finish_reason is not None
        if self._mode != "off":
            self._watch.apply(frame)
            yield from self._write_frame(frame, is_last=is_last, is_behind=is_behind)
        if frame.content:
            self._clock.note_content()
            if self._mode != "off" and not is_last:
                yield self._frame_chunk("commit", frame, settled=frame.settled)
            yield self._chunk({"content": frame.content})
        if is_last:
            yield from self._write_end(frame)

    def _write_frame(self, frame: Frame, *, is_last: bool, is_behind: bool) -> Iterator[Chunk]:
        if frame.step == 0 and not is_last:
            yield self._frame_chunk(
                "begin", frame, length=frame.length, block_length=frame.block_length
            )
            return
        if is_last:
            return
        self._num_skipped += 1
        if is_behind:
            self._has_dropped = True
        elif self._num_skipped >= self._interval:
            yield self._canvas_chunk("frame", frame)

    def _canvas_chunk(self, kind: str, frame: Frame, **fields: Any) -> Chunk:
        everything = kind == "frame" and (self._has_dropped or self._mode == "full")
        self._num_skipped, self._has_dropped = 0, False
        changes, unset = self._watch.take(everything=everything)
        if everything:
            kind = "keyframe"
        return self._frame_chunk(kind, frame, set=changes, unset=unset, **fields)

    def _write_end(self, frame: Frame) -> Iterator[Chunk]:
        usage = frame.usage or _NO_USAGE
        if self._mode != "off":
            if self._has_dropped:
                yield self._canvas_chunk("frame", frame)
            yield self._canvas_chunk("end", frame, **summary(self._params, usage))
        finish = self._chunk({}, finish_reason=finish_reason_of(frame))
        yield finish | {"timings": self._clock.timings(usage)}
        if self._include_usage:
            yield self._head.fields() | {
                "choices": [],
                "usage": usage_of(usage),
                "diffusion": {"kind": "usage", **summary(self._params, usage)},
            }

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
        if self._location == "delta":
            extra = {"provider_specific_fields": {"diffusion": payload}}
            return self._chunk({"content": "", **extra})
        return self._chunk({}) | {"diffusion": payload}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._head.fields() | {"choices": [choice]}
        return chunk | {"usage": None} if self._include_usage else chunk


class Stopwatch:
    """When an answer began and its first text settled."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._first: float | None = None

    def note_content(self) -> None:
        """Remember the time of the first settled text."""
        if self._first is None:
            self._first = time.perf_counter()

    def timings(self, usage: Usage) -> dict[str, float]:
        """llama.cpp's keys, which clients show as tokens per second, and the first text's."""
        now = time.perf_counter()
        elapsed = max(now - self._begin, 1e-9)
        first = self._first if self._first is not None else now
        return {
            "prompt_n": usage.prompt_tokens,
            "predicted_n": usage.completion_tokens,
            "predicted_ms": round(elapsed * 1000, 3),
            "predicted_per_second": round(usage.completion_tokens / elapsed, 3),
            "first_text_ms": round((first - self._begin) * 1000, 3),
        }


_NO_USAGE = Usage(prompt_tokens=0, completion_tokens=0, steps=0, nfe=0)


def _spell_change(change: Change) -> list[Any]:
    return [change.position, change.text, round(change.confidence, 4), change.kind]


def finish_reason_of(frame: Frame) -> str:
    """OpenAI's word for why an answer ended."""
    return "length" if frame.finish_reason is FinishReason.LENGTH else "stop"


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def summary(params: GenerationParams, usage: Usage) -> dict[str, Any]:
    """What it takes to repeat an answer, and what it cost."""
    return {
        "seed": params.seed,
        "policy": params.policy,
        "denoising_steps": usage.steps,
        "nfe": usage.nfe,
        "tokens_per_forward": round(usage.completion_tokens / usage.nfe, 3) if usage.nfe else 0.0,
    }
