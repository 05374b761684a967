"""The model card of an exported folder, and the figures of its run that it tells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from diffusiongpt.engine.architectures import context_length_of
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.config_file import to_mapping
from diffusiongpt.training.evaluate import Bound, with_error
from diffusiongpt.training.trainer import DiffusionTrainer

CARD_FILE = "README.md"
FIGURES_FILE = "training.json"

# Paths of the machine that trained say nothing to anybody else.
_PRIVATE = {"data": ("data_dir", "cache_dir", "tokenizer"), "run": ("output_dir",)}


def run_figures(trainer: DiffusionTrainer) -> dict[str, Any]:
    """What a run did: its configuration, steps, tokens, seconds and last loss."""
    config, state = trainer.config, trainer.state
    run = config.run
    rows = run.batch_size * run.gradient_accumulation_steps * trainer.args.world_size
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    plain = to_mapping(config)
    for section, keys in _PRIVATE.items():
        for key in keys:
            plain[section].pop(key)
    return {
        "version": version("diffusiongpt"),
        "steps": state.global_step,
        "tokens": state.global_step * rows * config.data.max_seq_length,
        "seconds": round(trainer.clock.elapsed_s, 1),
        "last_loss": losses[-1] if losses else None,
        "config": plain,
        "evaluation": {},
    }


def write_figures(folder: str | Path, figures: Mapping[str, Any]) -> None:
    """Write the figures beside the weights."""
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    Path(folder, FIGURES_FILE).write_text(f"{text}\n", encoding="utf-8")


def read_figures(folder: str | Path) -> dict[str, Any]:
    """The figures of a folder; without any, of an empty evaluation."""
    path = Path(folder, FIGURES_FILE)
    if not path.is_file():
        return {"evaluation": {}}
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    figures.setdefault("evaluation", {})
    return figures


def record_bound(folder: str | Path, name: str, bound: Bound, block_length: int | None) -> None:
    """Add a bound to a folder's figures, and write its card anew."""
    figures = read_figures(folder)
    key = name if block_length is None else f"{name}, blocks of {block_length}"
    figures["evaluation"][key] = asdict(bound)
    write_figures(folder, figures)
    write_card(folder)


def write_card(folder: str | Path, name: str | None = None) -> None:
    """Write the card of a folder; `name` is what it is served or published as."""
    text = "\n".join(card_lines(folder, name or Path(folder).resolve().name))
    Path(folder, CARD_FILE).write_text(f"{text}\n", encoding="utf-8")


def card_lines(folder: str | Path, name: str) -> Iterator[str]:
    """The card line by line: what it is, how it was trained, how good it is, how it is used."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    figures = read_figures(folder)
    yield from ("---", "library_name: diffusiongpt", "pipeline_tag: text-generation")
    yield from ("tags: [diffusion, masked-diffusion, text-diffusion]", "---", "", f"# {name}", "")
    context = context_length_of(AutoConfig.from_pretrained(str(folder)))
    yield from _about(config, context)
    if "config" in figures:
        yield from ("", "## Training", "")
        yield from _training(figures)
    if figures["evaluation"]:
        yield from ("", "## Evaluation", "")
        yield from _evaluation(figures["evaluation"])
    yield from ("", "## Use", "", "```bash", "pip install 'diffusiongpt[server]'")
    yield from (f"diffusiongpt serve --model {name}", "```")


def _about(config: Mapping[str, Any], context: int) -> Iterator[str]:
    section = config["diffusion"]
    kind = "of the whole canvas"
    if section["attention"] == "block_causal":
        lengths = section.get("block_lengths") or [section["block_length"]]
        kind = "in blocks of " + " or ".join(str(each) for each in lengths if each)
        kind += ", or of the whole canvas" if 0 in lengths else ""
    yield f"A masked diffusion language model that denoises {kind} ({config['architectures'][0]},"
    yield f"{config['vocab_size']:,} tokens of vocabulary, a context of"
    yield f"{context:,} tokens)."
    if section.get("can_edit"):
        yield "It was trained to put wrong tokens right, so it can edit what it wrote."


def _training(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"{figures['steps']:,} steps of the last stage, {figures['tokens']:,} tokens,"
    yield f"{figures['seconds'] / 60:.1f} minutes, with diffusiongpt {figures['version']}."
    if figures["last_loss"] is not None:
        yield f"Last training loss: {figures['last_loss']:.4f} nats per maskable token."
    yield from ("", "```yaml")
    yield yaml.safe_dump(figures["config"], sort_keys=False).rstrip()
    yield "```"


def _evaluation(bounds: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "Upper bounds of the negative log-likelihood on a fixed grid of noise levels, with"
    yield "standard errors over rows."
    yield from ("", "| data | nats/token | bits/byte | tokens |", "|---|---|---|---|")
    for name, each in bounds.items():
        nats = with_error(each["nats_per_token"], each["standard_error"])
        bits = "-"
        if each["bits_per_byte"] is not None:
            bits = with_error(each["bits_per_byte"], each["bits_per_byte_error"])
        yield f"| {name} | {nats} | {bits} | {each['tokens']:,} |"
