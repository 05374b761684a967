"""Every benchmark runs at a minuscule size and reports what its table needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_models import write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
KEYS = {
    "bench_single.py": ("times_faster", "median"),
    "bench_batch.py": ("times_the_rate", "median"),
    "bench_cache.py": ("times_faster", "median"),
    "bench_approx_cache.py": ("times_faster", "dual", "median"),
    "bench_forward.py": ("bundled", "share_of_large_product"),
}


def test_every_benchmark_is_tested():
    assert {path.name for path in BENCHMARKS.glob("bench_*.py")} == set(KEYS)


@pytest.mark.parametrize("script", KEYS)
def test_a_benchmark_reports_its_ratio_and_the_machine(script, tmp_path):
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, script, "--quick", "--repeats", "1", "--json", str(out)],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["reach"]
    assert {"date", "cpu", "cores", "torch", "threads"} <= result["machine"].keys()
    for key in KEYS[script]:
        result = result[key]
    assert result


def test_samples_are_printed_with_their_seeds(tmp_path):
    section = {"mask_token_id": MASK, "stop_token_ids": [IM_END], "never_emit_token_ids": [MASK]}
    write_modernbert(tmp_path, vocab_size=VOCAB_SIZE, section=section)
    write_tiny_tokenizer(tmp_path)
    done = subprocess.run(
        [sys.executable, "sample.py", "--model", str(tmp_path), "--max_tokens", "8"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "**20. " in done.stdout
    assert "(seed 20, " in done.stdout
