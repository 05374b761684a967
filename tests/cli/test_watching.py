"""The terminal view: masks, then text, coloured by confidence; the model's text is inert."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from diffusiongpt.cli.watching import MASK_GLYPH, CanvasView
from diffusiongpt.engine.errors import EngineFailure
from diffusiongpt.engine.frame import FinishReason

from fakes import shuffled_frames

TEXT = "Once upon a time\nthere was a cat."


def rendered(renderable):
    console = Console(width=100, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def views(frames):
    view = CanvasView()
    for frame in frames:
        view.apply(frame)
        yield view


def test_masks_become_text_and_none_is_left_at_the_end():
    shots = [rendered(view.render()) for view in views(shuffled_frames(TEXT, seed=1))]
    assert MASK_GLYPH in shots[0]
    assert MASK_GLYPH not in shots[-1]
    assert shots[-1].startswith(TEXT)
    assert "masked" in shots[0]


def test_content_is_the_text_and_the_cost_is_named():
    view = list(views(shuffled_frames(TEXT, seed=2)))[-1]
    assert view.content == TEXT
    assert "tokens per forward" in rendered(view.final())


def test_escape_sequences_of_the_model_do_not_reach_the_terminal():
    shot = rendered(list(views(shuffled_frames("a\x1b[31mred\x9bm", seed=3)))[-1].final())
    assert "\x1b" not in shot
    assert "\x9b" not in shot


def test_the_view_before_the_first_frame_is_empty():
    assert rendered(CanvasView().render()).strip() == ""


def test_an_error_frame_is_an_error():
    frame = dataclasses.replace(
        shuffled_frames(TEXT)[-1], finish_reason=FinishReason.ERROR, error="out of memory"
    )
    with pytest.raises(EngineFailure, match="out of memory"):
        CanvasView().apply(frame)
