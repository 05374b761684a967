"""A compiled backbone: an eager one's logits and tokens, and a sentence without a compiler."""

from __future__ import annotations

import shutil

import pytest
import torch

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.params import GenerationParams

from tiny_models import write_modernbert

PROMPTS = ([7, 8, 9], list(range(10, 40)), [11])


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
def test_a_compiled_backbone_gives_the_same_tokens_for_any_mix_of_lengths(tmp_path):
    folder = write_modernbert(tmp_path, block_length=8)
    eager = Engine.from_pretrained(folder, dtype="float32")
    compiled = Engine.from_pretrained(folder, dtype="float32", compile=True)
    torch.testing.assert_close(compiled.logits(PROMPTS[1]), eager.logits(PROMPTS[1]))
    params = GenerationParams(max_tokens=20, seed=1, policy="confidence", ignore_eos=True)
    expected = [answer.token_ids for answer in eager.generate(PROMPTS, params)]
    assert [answer.token_ids for answer in compiled.generate(PROMPTS, params)] == expected


def test_what_cannot_be_compiled_is_refused_in_a_sentence(tmp_path, monkeypatch):
    model = load_model(write_modernbert(tmp_path), dtype="float32")

    def broken(*unused):
        raise RuntimeError("no compiler found\nand much more")

    monkeypatch.setattr(model, "backbone", broken)
    with pytest.raises(
        LoadError, match=r"C\+\+ compiler is needed\): RuntimeError: no compiler found$"
    ):
        model.compile()
