"""A completion in the terminal while it forms: masks, then text coloured by confidence."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from diffusiongpt.engine.errors import EngineFailure
from diffusiongpt.engine.frame import Change, FinishReason, Frame

MASK_GLYPH = "░░"
# Masks that are shown after the last filled position; the rest of the canvas is implied.
_MASKS_AHEAD = 24
_UNSURE, _FAIR = 0.3, 0.7
# What a model writes is shown, never obeyed: an escape sequence must not reach the terminal.
_INERT = dict.fromkeys((*range(32), *range(127, 160)), "�")
del _INERT[ord("\n")], _INERT[ord("\t")]


def show(frames: Iterable[Frame], *, live: bool, pace: float = 0.0) -> str:
    """Show a completion as it forms, or only its text; returns the text.

    Args:
        pace: seconds that each frame stays at least, for small models outrun the eye.

    Raises:
        EngineFailure: the completion ended in an error.
    """
    console = Console()
    view = CanvasView()
    if not live:
        inert = _INERT if sys.stdout.isatty() else {}
        for frame in frames:
            view.apply(frame)
            typer.echo(frame.content.translate(inert), nl=False)
        typer.echo()
        return view.content
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        for frame in frames:
            view.apply(frame)
            screen.update(view.render(), refresh=True)
            view.pause(pace)
    console.print(view.final())
    return view.content


class CanvasView:
    """What is known of a completion, as rich text."""

    def __init__(self) -> None:
        self.content = ""
        self._changes: dict[int, Change] = {}
        self._new: set[int] = set()
        self._frame: Frame | None = None
        self._num_frames = 0
        self._started = time.perf_counter()
        self._paused_s = 0.0

    def apply(self, frame: Frame) -> None:
        """Take over a frame; raises EngineFailure when it says that the engine failed."""
        if frame.finish_reason is FinishReason.ERROR:
            raise EngineFailure(frame.error or "the engine failed")
        self._frame = frame
        self._num_frames += bool(frame.tokens)
        self.content += frame.content
        self._new = {change.position for change in frame.set}
        self._changes |= {change.position: change for change in frame.set}
        for position in frame.unset:
            self._changes.pop(position, None)

    def pause(self, seconds: float) -> None:
        """Leave the canvas on the screen for a while; that is not the model's time."""
        time.sleep(seconds)
        self._paused_s += seconds

    def render(self) -> Group:
        """The canvas with its masks, and a line on the step."""
        return Group(self._canvas(), self._status())

    def final(self) -> Group:
        """The finished text in the colours of its confidence, and what it cost."""
        return Group(self._canvas(), self._cost())

    def _canvas(self) -> Text:
        text = Text()
        if self._frame is None:
            return text
        end = max(self._changes, default=-1) + 1
        if self._frame.finish_reason is None:
            end = min(end + _MASKS_AHEAD, self._frame.length)
        for position in range(end):
            change = self._changes.get(position)
            if change is None:
                text.append(MASK_GLYPH, style="bright_black")
            else:
                text.append(change.text.translate(_INERT), style=self._style(change))
        return text

    def _style(self, change: Change) -> str:
        colour = "green"
        if change.confidence < _UNSURE:
            colour = "red"
        elif change.confidence < _FAIR:
            colour = "yellow"
        return f"bold {colour}" if change.position in self._new else colour

    def _status(self) -> Text:
        frame = self._frame
        if frame is None:
            return Text()
        filled = frame.length - frame.masked
        rate = filled / self._num_frames if self._num_frames else 0.0
        return Text(
            f"step {frame.step}/{frame.steps} · {frame.masked} masked · "
            f"{rate:.1f} tokens per forward",
            style="dim",
        )

    def _cost(self) -> Text:
        usage = self._frame.usage if self._frame is not None else None
        if usage is None:
            return Text()
        seconds = max(time.perf_counter() - self._started - self._paused_s, 1e-9)
        return Text(
            f"{usage.completion_tokens} tokens · {usage.nfe} forwards · "
            f"{usage.completion_tokens / max(usage.nfe, 1):.1f} tokens per forward · "
            f"{usage.completion_tokens / seconds:.0f} tokens/s",
            style="dim",
        )
