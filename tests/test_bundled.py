"""The model that is served by default: small, safe to load, documented, and it ends its answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffusiongpt.engine import Engine, FinishReason, GenerationParams
from diffusiongpt.engine.engine import BUNDLED_MODEL

PROMPTS = ("Hello!", "What is your name?", "Tell me a story about a cat.", "Tell me a story.")
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pretrained()


def chats(engine, prompts):
    return [engine.encode_chat([{"role": "user", "content": prompt}]) for prompt in prompts]


def test_it_is_small_and_holds_no_code_but_its_pipeline():
    files = [path for path in Path(BUNDLED_MODEL).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25 * MEGABYTE
    # The one program there is for the `pipeline` of transformers; the engine never runs it.
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md", ".py"}
    assert [path.name for path in files if path.suffix == ".py"] == ["pipeline.py"]


def test_it_is_a_block_diffusion_model_with_its_own_name(engine):
    assert engine.info.name == "diffusiongpt-bundled"
    assert engine.info.attention == "block_causal"
    assert engine.info.num_parameters < 10_000_000


def test_most_of_its_answers_end(engine):
    answers = engine.generate(chats(engine, PROMPTS * 4), GenerationParams(max_tokens=256, seed=1))
    ended = sum(answer.finish_reason is FinishReason.STOP for answer in answers)
    assert ended >= 0.75 * len(answers)
    assert all(answer.text.strip() for answer in answers)


def test_it_writes_words_and_not_noise(engine):
    params = GenerationParams(max_tokens=200, seed=1)
    text = " ".join(a.text for a in engine.generate(chats(engine, PROMPTS[2:] * 4), params))
    words = re.findall(r"[a-z]+", text.lower())
    common = {"the", "and", "a", "to", "was", "he", "she", "it", "of", "said", "in", "i", "you"}
    share = sum(word in common for word in words) / len(words)
    assert share > 0.15
    assert len(set(words)) > 0.2 * len(words)


def test_several_tokens_are_committed_in_a_forward(engine):
    story = engine.generate(chats(engine, PROMPTS[2:3]), GenerationParams(max_tokens=200, seed=1))
    assert story[0].usage.completion_tokens > story[0].usage.nfe


def test_its_readme_says_what_it_is_made_of():
    text = (Path(BUNDLED_MODEL) / "README.md").read_text()
    for word in ("nats", "bits", "5-gram", "licence", "diffusiongpt.training", "seed 50"):
        assert word in text, word
