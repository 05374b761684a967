"""The page over a real engine: what it shows is what the API says."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from diffusiongpt.engine import Engine
from diffusiongpt.engine.worker import EngineWorker

from scripted import serving
from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


@pytest.fixture(scope="module", params=[None, 4], ids=["bidirectional", "block_causal"])
def worker(request, tmp_path_factory) -> Iterator[EngineWorker]:
    folder = tmp_path_factory.mktemp("model")
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(folder, block_length=request.param, vocab_size=VOCAB_SIZE, section=section)
    write_tiny_tokenizer(folder)
    worker = EngineWorker(Engine.from_pretrained(folder, dtype="float32", name="tiny"))
    worker.start()
    yield worker
    worker.stop()


def test_the_page_shows_what_the_api_says(make_stage, worker):
    with serving(worker) as url:
        stage = make_stage(url)
        page = stage.page
        expect(page.locator("#model strong")).to_have_text("tiny")
        page.get_by_role("button", name="Settings").click()
        for label, value in {"Seed": "9007199254740993", "Max tokens": "24"}.items():
            page.get_by_label(label, exact=True).fill(value)
        stage.ask("The cat")
        stage.done()
        page.get_by_label("Copy the answer").click()
        expect(page.get_by_label("Copied")).to_be_visible()
        messages = [{"role": "user", "content": "The cat"}]
        ask = {"model": "tiny", "messages": messages, "max_tokens": 24, "seed": 9007199254740993}
        answer = httpx.post(f"{url}/v1/chat/completions", json=ask, timeout=60).json()
        content = answer["choices"][0]["message"]["content"]
        assert stage.filled_text(content) == content
        assert page.evaluate("() => navigator.clipboard.readText()").strip() == content.strip()
        expect(page.locator(".meter")).to_contain_text(f"{answer['diffusion']['nfe']} NFE")
