"""What a newcomer copies from the quickstart works as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from diffusiongpt.engine import Engine
from diffusiongpt.server.app import create_app

from fakes import FakeGenerator
from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from wire import events_of

TEXT = (Path(__file__).parent.parent / "docs" / "QUICKSTART.md").read_text()
CURLS = re.findall(r"^curl .*?localhost:8000(/\S+) .*?-d '(.*?)'$", TEXT, re.DOTALL | re.MULTILINE)


def test_every_curl_is_tried():
    assert len(CURLS) == TEXT.count("curl ") == 3


@pytest.mark.parametrize(("path", "body"), CURLS)
def test_what_is_sent_is_answered(path: str, body: str):
    app = create_app(FakeGenerator("A story.", name="diffusiongpt-bundled"))
    answer = TestClient(app).post(path, json=json.loads(body))
    assert answer.status_code == 200
    if json.loads(body).get("stream"):
        assert any("diffusion" in event for event in events_of(answer.text))
    else:
        assert "A story." in answer.text


def test_the_python_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(tmp_path, vocab_size=VOCAB_SIZE, section=section)
    write_tiny_tokenizer(tmp_path)
    engine = Engine.from_pretrained(tmp_path, dtype="float32")
    monkeypatch.setattr(Engine, "from_pretrained", classmethod(lambda cls: engine))
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    exec(code, {})
    assert len(capsys.readouterr().out) > 20
