"""A run on a lent machine: tokenised texts alone, no server packages, and another machine after."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.data import build_dataset
from diffusiongpt.training.run import check_folder

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--hidden_size", "16", "--num_hidden_layers", "2", "--num_attention_heads", "2"),
    *("--intermediate_size", "24", "--local_attention", "16", "--max_seq_length", "32"),
    *("--mix", '{"texts": 1}', "--batch_size", "4", "--compile", "false"),
    *("--log_steps", "1"),
]
NOT_THERE = """
import sys
for name in ("fastapi", "starlette", "uvicorn", "pydantic", "httpx", "typer", "rich"):
    sys.modules[name] = None  # importing it fails
"""


def test_tokenised_texts_travel_without_the_texts(make_config, tokenizer, data_dir, tmp_path):
    def rows(texts, cache, **data):
        places = {"data_dir": str(tmp_path / texts), "cache_dir": str(tmp_path / cache)}
        config = make_config(data={**places, **data}).data
        return build_dataset(config, "pretrain", "block", 4, tokenizer, 0)

    shutil.copytree(data_dir, tmp_path / "texts")
    first = rows("texts", "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "elsewhere")
    assert (rows("gone", "elsewhere").tokens == first.tokens).all()
    with pytest.raises(FileNotFoundError, match="chats"):  # never tokenised
        rows("gone", "elsewhere", mix={"chats": 1.0})
    with pytest.raises(FileNotFoundError, match="texts"):  # tokenised otherwise
        rows("gone", "elsewhere", max_documents=3)
    # Where the texts are, they are what counts.
    (tmp_path / "texts" / "texts.jsonl").write_text('{"text": "the cat ran home"}\n')
    assert len(rows("texts", "elsewhere")) < len(first)


def test_a_lease_needs_no_server_and_goes_on_elsewhere(
    make_config, tokenizer, tokenizer_dir, tmp_path
):
    pack = tmp_path / "pack"
    data = make_config(data={"cache_dir": str(pack / "cache")}).data
    build_dataset(data, "pretrain", "block", 8, tokenizer, 1)
    shutil.copytree(tokenizer_dir, pack / "tokenizer")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOT_THERE)

    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "lease.sh"), str(pack), here, *SMALL, "--max_steps", "2"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shutil.copytree(here, there)
    places = ["--data_dir", here, "--cache_dir", data.cache_dir, "--output_dir", there]
    config = [str(ROOT / "configs" / "lease.yaml"), "--tokenizer", str(tokenizer_dir)]
    assert main(["train", *config, *places, *SMALL, "--max_steps", "4"]) == 0
    state = json.loads((tmp_path / "there" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4]
    check_folder(tmp_path / "there" / "final")
