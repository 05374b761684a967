"""Trains variants of one configuration on the same data, and says what came of each.

python benchmarks/compare_runs.py configs/compare/endings.yaml --data_dir D --tokenizer T

The file has `base` (the sections of a training configuration), `variants` (a name and what it
changes, as `section.key`), `bounds` (held-out names) and `endings` (held-out chats, answered in
each of `canvases`, by the whole canvas and by each of `blocks`). Bounds are compared with the
first variant's. Options change the base; `--only NAME...` takes some of the variants.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from diffusiongpt.training.config import ConfigError, TrainingConfig
from diffusiongpt.training.config_file import load_config
from diffusiongpt.training.evaluate import Bound
from diffusiongpt.training.folders import load_tokenizer
from diffusiongpt.training.generation import load_engine, measure_endings, stop_ids_of
from diffusiongpt.training.judge import evaluate
from diffusiongpt.training.quality import EndingShares
from diffusiongpt.training.run import train
from diffusiongpt.training.space import with_values

KEYS = ("base", "variants", "bounds", "endings", "canvases", "blocks", "draws", "max_rows", "count")


def main(arguments: list[str]) -> int:
    """Train and judge every variant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--output_dir", default="runs/compare")
    options, rest = parser.parse_known_args(arguments)
    try:
        plan, base = read_plan(options.file, rest)
        runs = {
            name: with_values(base, {**changes, "run.output_dir": f"{options.output_dir}/{name}"})
            for name, changes in plan["variants"].items()
            if not options.only or name in options.only
        }
        compare(runs, plan)
    except (ConfigError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def read_plan(path: str, overrides: list[str]) -> tuple[dict[str, Any], TrainingConfig]:
    """The file's plan, and its base with the overrides."""
    plan: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for key in plan:
        if key not in KEYS:
            raise ConfigError(f"unknown key {key!r} in {path}; accepted are {', '.join(KEYS)}")
    if not isinstance(plan.get("variants"), Mapping) or not plan["variants"]:
        raise ConfigError(f"variants in {path} must name at least one, got {plan.get('variants')}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as base:
        yaml.safe_dump(dict(plan["base"]), base)
        base.flush()
        return plan, load_config(base.name, overrides)


def compare(runs: Mapping[str, TrainingConfig], plan: Mapping[str, Any]) -> None:
    """Train each run (one that has ended is not trained again), and say what came of it."""
    first: dict[str, Bound] = {}
    for name, config in runs.items():
        started = time.perf_counter()
        folder = Path(config.run.output_dir) / "final"
        if not (folder / "config.json").is_file():
            train(config)
            say(f"{name}: {config.run.max_steps} steps in {time.perf_counter() - started:.0f} s")
        for file in plan.get("bounds", []):
            bounds = evaluate(
                folder, [file], config.data, plan.get("draws", 8), plan.get("max_rows")
            )
            reference = first.setdefault(file, bounds[file])
            change = bounds[file].nats_per_token / reference.nats_per_token - 1
            say(f"{name}: {file}: {bounds[file]}, {change:+.2%} against the first")
        for file in plan.get("endings", []):
            for line in judge_endings(folder, file, config.data.data_dir, plan):
                say(f"{name}: {file}: {line}")


def judge_endings(folder: Path, file: str, data_dir: str, plan: Mapping[str, Any]) -> list[str]:
    """How a folder's answers end in each canvas; of the whole and, where asked, by blocks."""
    engine, tokenizer = load_engine(folder), load_tokenizer(str(folder))
    lines = []
    own = [None] if engine.info.attention == "block_causal" else [None, *plan.get("blocks", [])]
    for block_length in own:
        for canvas in plan["canvases"]:
            shares: EndingShares = measure_endings(
                engine,
                tokenizer,
                stop_ids_of(folder),
                file,
                data_dir,
                max_tokens=canvas,
                count=plan.get("count", 64),
                canvases=plan["canvases"],
                block_length=block_length,
            )
            how = "" if block_length is None else f" by blocks of {block_length}"
            lines.append(f"canvas {canvas}{how}: {shares}")
    return lines


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
