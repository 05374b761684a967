"""Measuring on a noisy machine: paired runs, taken in turn in one process, reported as ratios."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

# The bundled model's shape, with full-canvas attention; a random one serves to measure time.
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "global_attn_every_n_layers": 3,
    "local_attention": 64,
    "max_position_embeddings": 1024,
}
MINUSCULE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
MASK, STOP = 4, 3


def parse_arguments(
    description: str | None, *, takes_model: bool = False, **numbers: int
) -> argparse.Namespace:
    """The flags that every benchmark has, and its own whole numbers."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a minuscule model, for tests")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="where the engine runs: cpu or cuda")
    if takes_model:
        parser.add_argument("--model", help="a folder or hub id; the bundled model by default")
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def write_random_model(quick: bool, block_length: int | None = None, **shape: int) -> Path:
    """A folder with random weights in the bundled model's shape, full-canvas attention unless
    it gets a block length."""
    folder = Path(mkdtemp(prefix="diffusiongpt-bench-"))
    atexit.register(shutil.rmtree, folder)
    numbers = {**SHAPE, **(MINUSCULE if quick else {}), **shape}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": STOP}
    config = ModernBertConfig(**numbers, **ids, cls_token_id=1, sep_token_id=STOP)
    torch.manual_seed(0)
    ModernBertForMaskedLM(config).save_pretrained(folder)
    path = folder / "config.json"
    section = {
        "version": 1,
        "mask_token_id": MASK,
        "attention": "bidirectional" if block_length is None else "block_causal",
        "block_length": block_length,
        "logit_shift": False,
        "stop_token_ids": [STOP],
        "never_emit_token_ids": [0, 1, MASK],
        "sampler": {},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), "diffusion": section}))
    return folder


def in_turn(
    repeats: int, clock: Callable[[], float] = time.perf_counter, **runs: Callable[[], Any]
) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn so that drift of the machine hits all alike.

    The first round warms up and is not counted. `clock` may be `time.process_time` where one
    thread runs and other processes share its core.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            finish_kernels()
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


def finish_kernels() -> None:
    """Wait for what a CUDA device was told to do; kernels run on after a call has returned."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """The median of the paired ratios with their extremes."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def report(options: argparse.Namespace, name: str, reach: str, result: Mapping[str, Any]) -> None:
    """Print the result with the machine it was measured on, and write it as JSON if asked."""
    record = {"benchmark": name, "reach": reach, **result, "machine": describe_machine()}
    text = json.dumps(record, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")


def describe_machine() -> dict[str, Any]:
    """What a number means nothing without."""
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
