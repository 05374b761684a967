"""Every example runs as its docstring says, against a real engine of a tiny model."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from diffusiongpt.engine import Engine
from diffusiongpt.engine.worker import EngineWorker

from scripted import serving
from tiny_models import edit_config, write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(folder, vocab_size=VOCAB_SIZE, section=section)
    # Tools are told in the prompt.
    edit_config(folder, max_position_embeddings=1024)
    write_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path):
    worker = EngineWorker(Engine.from_pretrained(folder, name="tiny", dtype="float32"))
    worker.start()
    with serving(worker) as url:
        yield url
    worker.stop()


def run(name: str, *arguments: str, url: str = "", folder: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        env={**os.environ, "DIFFUSIONGPT_URL": url, "PYTHONUTF8": "1"},
        cwd=folder,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    # As it is: a random model writes line ends of every kind.
    return done.stdout.decode()


def answer(url: str, max_tokens: int) -> str:
    messages = [{"role": "user", "content": "The cat"}]
    ask = {"model": "tiny", "messages": messages, "max_tokens": max_tokens, "seed": 1}
    body = httpx.post(f"{url}/v1/chat/completions", json=ask, timeout=60).json()
    return body["choices"][0]["message"]["content"]


def test_every_example_is_run():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))


def test_chat_prints_the_answer(url: str):
    assert run("chat.py", "The cat", url=url) == answer(url, 64) + "\n"


def test_watch_ends_with_the_answer(url: str):
    *steps, last, cost = run("watch.py", "The cat", url=url).split("\n")[:-1]
    assert "·" in steps[0]
    assert last == repr(answer(url, 32))
    assert "forwards" in cost


def test_fill_keeps_what_is_given(url: str):
    text = run("fill.py", "The cat ", "5", " on the mat", url=url)
    assert re.fullmatch(r"The cat \[.*\] on the mat\n", text, re.DOTALL)


def test_the_python_api_generates_and_streams(folder: Path):
    lines = run("python_api.py", str(folder)).split("\n")[:-1]
    assert sum("forwards" in line for line in lines[:2]) == 2
    assert lines[2].startswith("step 0, 32 masked")
    assert len(lines) > 4


def test_edit_marks_what_changed(url: str):
    draft = "the cat sat on the mat and the dog sat in the sun"
    *lines, cost = run("edit.py", draft, "0.3", url=url).split("\n")[:-1]
    text = "\n".join(lines)
    assert "[" in text
    assert re.sub(r"\[(.*?) → .*?\](?= |$)", r"\1", text, flags=re.DOTALL) == draft
    assert re.fullmatch(r"\d+ of \d+ tokens kept, \d+ forwards", cost)


def test_structured_output_is_read_by_a_program(url: str):
    text = run("structured_output.py", "Invent a cat.", url=url)
    assert re.search(r" is (black|white|ginger) and \d{1,2} years old\.\n$", text)


def test_a_tool_is_called_and_its_result_goes_back(url: str):
    call, _, answer = run("tool_call.py", "What time is it?", url=url).partition("\n")
    assert re.fullmatch(r'tell_time \{"zone": ?"(Rome|Oslo)"\}', call)
    assert len(answer) > 1


def test_a_model_is_trained_and_writes(tmp_path: Path):
    texts = "The cat sat on the mat and the dog ran home.\n" * 60
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stories.txt").write_text(texts)
    *_, answer = run("train.py", "data", "6", folder=tmp_path).rstrip("\n").split("\n")
    assert len(ast.literal_eval(answer)) > 1
    assert (tmp_path / "runs" / "example" / "model" / "final" / "model.safetensors").is_file()
