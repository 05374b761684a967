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
from diffusiongpt.training.config_file import load_config, read_yaml
from diffusiongpt.training.evaluate import Bound
from diffusiongpt.training.folders import load_tokenizer
from diffusiongpt.training.generation import load_engine, measure_endings, stop_ids_of
from diffusiongpt.training.judge import evaluate
from diffusiongpt.training.quality import EndingShares
from diffusiongpt.training.run import train
from diffusiongpt.training.sources import check_readable
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
        for name in options.only or ():
            if name not in plan["variants"]:
                known = ", ".join(plan["variants"])
                raise ConfigError(f"--only takes variants of {options.file}, {known}; got {name!r}")
        check_readable([*plan.get("bounds", []), *plan.get("endings", [])], base.data.data_dir)
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
    plan = read_yaml(path)
    if not isinstance(plan, dict) or not isinstance(plan.get("base"), Mapping):
        raise ConfigError(f"{path} must be a mapping with the key base, itself a mapping")
    for key in plan:
        if key not in KEYS:
            raise ConfigError(f"unknown key {key!r} in {path}; accepted are {', '.join(KEYS)}")
    if not isinstance(plan.get("variants"), Mapping) or not plan["variants"]:
        raise ConfigError(f"variants in {path} must name at least one, got {plan.get('variants')}")
    for name, changes in plan["variants"].items():
        if not isinstance(changes, Mapping):
            raise ConfigError(f"variant {name} in {path} must be a mapping, got {changes!r}")
    if plan.get("endings") and not plan.get("canvases"):
        raise ConfigError(f"endings in {path} need canvases, the lengths to answer in; got none")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as base:
        yaml.safe_dump(dict(plan["base"]), base)
        base.flush()
        return plan, load_config(base.name, overrides)


def compare(runs: Mapping[str, TrainingConfig], plan: Mapping[str, Any]) -> None:
    """Train each run (one that is over takes no step more), and say what came of it."""
    first: dict[str, Bound] = {}
    for name, config in runs.items():
        started = time.perf_counter()
        folder = Path(config.run.output_dir) / "final"
        train(config)
        say(f"{name}: {config.run.max_steps} steps, after {time.perf_counter() - started:.0f} s")
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
