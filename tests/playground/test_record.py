"""The script that records the page makes a GIF of every step."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest

from scripted import DRAFT, ROOT, draft_frames

Image = pytest.importorskip("PIL.Image")
sync_api = pytest.importorskip("playwright.sync_api")


def load_script():
    spec = importlib.util.spec_from_file_location("record_page", ROOT / "docs" / "record_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_step_is_a_picture(stage, tmp_path: Path):
    script = load_script()
    stage.generator.frames = draft_frames()
    stage.page.set_viewport_size(script.SIZE)
    stage.page.emulate_media(reduced_motion="reduce")
    pictures = list(script.record(stage.page, "hi", DRAFT, seed=3, max_tokens=20))
    question, draft = (each.params for each in stage.generator.generations)
    assert (question.seed, question.max_tokens, question.draft) == (3, 20, None)
    assert draft.draft.strength == 0.25
    # Each: as it is asked, what changed it, and the end once more. An answer without a draft
    # takes what comes before the first step in one.
    assert len(pictures) == (1 + 3 + 1) + (1 + 4 + 1)
    assert Image.open(io.BytesIO(pictures[0].png)).size == (960, 540)
    out = tmp_path / "page.gif"
    script.write_gif(iter(pictures), out)
    with Image.open(out) as gif:
        assert gif.size == (960, 540)
        assert gif.n_frames > 6
    assert out.stat().st_size < 300_000


def test_the_recording_is_small_enough_for_a_page():
    recording = ROOT / "docs" / "page.gif"
    assert 10_000 < recording.stat().st_size < 1_000_000
    with Image.open(recording) as gif:
        assert gif.n_frames > 20
