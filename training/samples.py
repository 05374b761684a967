"""What the model writes while it learns: sample texts at intervals, through the engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diffusiongpt.training.generation import load_engine
from diffusiongpt.training.trainer import DiffusionTrainer

SAMPLES_FILE = "samples.txt"
OPENING_TOKENS = 8


class SampleCallback(TrainerCallback):
    """Writes what the averaged weights make of the data's first prompts into `samples.txt`.

    The weights go to the engine as an exported folder, as they would be served. Nothing of the
    run changes by it: the engine's numbers are its own, and the generator of torch is put back.
    """

    def __init__(
        self, trainer: DiffusionTrainer, every_steps: int, export: Callable[[Path], object]
    ) -> None:
        self.every_steps, self.export = every_steps, export
        rows: Any = trainer.train_dataset
        self.prompts = prompts_of(rows, trainer.config.alignment)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write samples every so many steps, on the first process."""
        if state.global_step % self.every_steps:
            return
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            self.export(Path(folder))
            if not state.is_world_process_zero:
                return
            lines = sample_lines(folder, self.prompts)
        path = Path(str(args.output_dir), SAMPLES_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"step {state.global_step}: {line}\n" for line in lines)


def sample_lines(folder: str, prompts: list[list[int]], max_tokens: int = 64) -> list[str]:
    """A line for each prompt: itself, and what follows it, with seed 0."""
    from diffusiongpt.engine import GenerationParams

    engine = load_engine(folder)
    room = engine.info.context_length - max(map(len, prompts)) - 1
    params = GenerationParams(max_tokens=max(min(max_tokens, room), 1), seed=0)
    written = engine.generate(prompts, params)
    return [
        f"{engine.decode(prompt)!r} -> {completion.text!r}"
        for prompt, completion in zip(prompts, written, strict=True)
    ]


def prompts_of(
    rows: Iterable[dict[str, Tensor]], block_length: int = 1, count: int = 3
) -> list[list[int]]:
    """The given part of the first rows' first segments, or a text's opening where all is trained.

    A prompt leaves half of the row for what follows it, and a block; where a row is one block
    there is no room for a prompt at all.
    """
    prompts = []
    for row in islice(rows, count):
        inside = row["segments"] == 1
        tokens, maskable = row["tokens"][inside], row["maskable"][inside]
        given = int(maskable.int().argmax()) or OPENING_TOKENS
        most = max(min(len(inside) // 2, len(tokens) - 1), 1)
        prompts.append(tokens[: min(given, most, len(inside) - block_length)].tolist())
    return prompts
