"""Every benchmark runs at a minuscule size and reports what its table needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tiny_models import edit_config, write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
KEYS = {
    "bench_single.py": ("times_faster", "median"),
    "bench_batch.py": ("times_the_rate", "median"),
    "bench_cache.py": ("times_faster", "median"),
    "bench_mixed.py": ("times_the_ideal_time", "median"),
    "bench_http.py": ("times_the_engine", "frames_on", "median"),
    "bench_approx_cache.py": ("times_faster", "dual", "median"),
    "bench_capture.py": ("tokens", "120", "times_faster", "median"),
    "bench_head.py": ("bundled", "rows", "4", "seconds", "chunked"),
    "bench_forward.py": ("bundled", "share_of_large_product"),
    "bench_training.py": ("bundled", "share_of_best_product", "median"),
    "bench_load.py": ("first_frame_ms", "p95"),
    "bench_structured.py": ("share_valid",),
    "bench_languages.py": ("slowest",),
    "bench_tiers.py": ("scaffold", "forwards_of_an_answer"),
    "bench_tools.py": ("valid",),
    "bench_page.py": ("canvases", "canvas_32", "cpu_ms", "all"),
}


def test_every_benchmark_is_tested():
    assert {path.name for path in BENCHMARKS.glob("bench_*.py")} == set(KEYS)


@pytest.mark.parametrize("script", KEYS)
def test_a_benchmark_reports_its_ratio_and_the_machine(script, tmp_path):
    if script == "bench_page.py" and not shutil.which("chromium"):
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    out = tmp_path / "result.json"
    # What is measured through the server needs a tokenizer, so it makes no model of its own.
    model = []
    if script in ("bench_load.py", "bench_tools.py"):
        model = ["--model", write_served_model(tmp_path)]
        edit_config(tmp_path, max_position_embeddings=2048)
    done = subprocess.run(
        [sys.executable, script, "--quick", "--repeats", "1", "--json", str(out), *model],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["reach"]
    assert {"date", "cpu", "cores", "torch", "threads"} <= result["machine"].keys()
    for key in KEYS[script]:
        result = result[key]
    assert result


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_quantised_weights_are_compared_with_plain_ones(tmp_path):
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "compare_quantized.py", "--quick", "--repeats", "1", "--json", str(out)],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    sizes = result["bytes_of_layers"]
    assert sizes["int4"] < sizes["int8"] < sizes["plain"]
    assert 0.0 <= result["int8"]["kl_nats"] < result["int4"]["kl_nats"] < 0.01


def write_served_model(folder):
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(folder, vocab_size=VOCAB_SIZE, section=section)
    return str(write_tiny_tokenizer(folder))


def test_samples_are_printed_with_their_seeds(tmp_path):
    write_served_model(tmp_path)
    done = subprocess.run(
        [sys.executable, "sample.py", "--model", str(tmp_path), "--max_tokens", "8"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "**50. " in done.stdout
    assert "(seed 50, " in done.stdout


def test_refined_drafts_are_told_beside_the_law():
    done = subprocess.run(
        [sys.executable, "draft_table.py", "--num", "20", "--only", "0.3"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()[2:]]
    losses = {row[1].strip(): float(row[3].split("±")[0]) for row in rows}
    assert len(losses) == 4
    assert losses["the chain itself"] < losses["strength 0.3, random"] < losses["the drafts"]
    assert losses["strength 0.3, doubtful"] < losses["strength 0.3, random"]
