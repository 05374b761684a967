"""DiffusionTrainer: the Hugging Face Trainer with our loss, optimiser, schedule and checkpoints."""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from diffusiongpt.training.config import TrainingConfig
from diffusiongpt.training.denoiser import Denoiser
from diffusiongpt.training.forward import EditTokens, corruption_of, edit_tokens_of
from diffusiongpt.training.optimizer import MasterWeights, build_optimizer, schedule_factor

CLOCK_FILE = "clock.json"


class RunClock:
    """How far a run is, 0..1, by steps or by minutes, whichever is further; survives a resume."""

    def __init__(self, max_steps: int, max_minutes: float | None) -> None:
        self.max_steps, self.max_minutes = max_steps, max_minutes
        self.seconds_before = 0.0
        self.started_at: float | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, those before a resume included."""
        now = 0.0 if self.started_at is None else time.monotonic() - self.started_at
        return self.seconds_before + now

    def start(self) -> None:
        """Begin to count."""
        self.started_at = time.monotonic()

    def progress(self, step: int) -> float:
        """The share of the run that is done after `step` steps."""
        by_steps = step / self.max_steps
        if self.max_minutes is None:
            return by_steps
        return max(by_steps, self.elapsed_s / (60 * self.max_minutes))


def training_arguments(config: TrainingConfig) -> TrainingArguments:
    """Our configuration in the Trainer's words; what we do ourselves is switched off there."""
    run = config.run
    return TrainingArguments(
        output_dir=run.output_dir,
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        max_steps=run.max_steps,
        learning_rate=run.learning_rate,
        max_grad_norm=run.max_grad_norm,
        logging_steps=run.log_steps,
        save_strategy="no" if run.save_steps is None else "steps",
        save_steps=run.save_steps or 500,
        save_total_limit=2,
        seed=run.seed,
        data_seed=run.seed,
        report_to=run.report_to,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_num_workers=run.dataloader_workers,
        bf16=run.precision == "autocast",
        use_cpu=not torch.cuda.is_available(),
    )


class DiffusionTrainer(Trainer):
    """Trains a `Denoiser`: compute_loss, and the float32 masters that are saved and resumed."""

    def __init__(self, model: Denoiser, config: TrainingConfig, **kwargs: Any) -> None:
        self.config = config
        self.clock = RunClock(config.run.max_steps, config.run.max_minutes)
        self._micro_step = (-1, 0)  # the step of the last batch, and its place in that step
        super().__init__(model=model, args=training_arguments(config), **kwargs)

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Tensor], **unused: Any
    ) -> Tensor:
        """The bound in nats per maskable token, for corruption keyed by (seed, step, row)."""
        maskable = inputs["maskable"]
        corruption = self._corruption(inputs)
        loss: Tensor = model(**inputs, **corruption)
        return loss / maskable.sum().clamp(min=1)

    def _corruption(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """What `Denoiser.forward` takes beside the batch, of the next micro-batch of this step."""
        step = self.state.global_step
        micro = self._micro_step[1] + 1 if self._micro_step[0] == step else 0
        self._micro_step = (step, micro)
        world, batch = self.args.world_size, len(inputs["tokens"])
        return corruption_of(
            inputs,
            self.config,
            self.edit_tokens,
            step,
            first_row=(micro * world + self.args.process_index) * batch,
            num_rows=self.args.gradient_accumulation_steps * world * batch,
        )

    @cached_property
    def edit_tokens(self) -> EditTokens:
        """The token ids that edits are made of."""
        return edit_tokens_of(self.processing_class)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Float32 masters with their average, AdamW or Muon inside."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self._denoiser(), self.config.run)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Warm-up, stable, decay over the clock's progress."""
        if self.lr_scheduler is None:
            run = self.config.run
            self.lr_scheduler = LambdaLR(
                self.create_optimizer() if optimizer is None else optimizer,
                lambda step: schedule_factor(
                    self.clock.progress(step), run.warmup_fraction, run.decay_fraction
                ),
            )
        return self.lr_scheduler

    @property
    def masters(self) -> MasterWeights:
        """Our optimiser, without accelerate's wrapper."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if not isinstance(optimizer, MasterWeights):
            raise TypeError(f"the optimizer must be MasterWeights, got {type(optimizer).__name__}")
        return optimizer

    def averaged_state(self) -> dict[str, Tensor]:
        """The averaged float32 weights under the network's own names."""
        prefix = "network."
        average = self.masters.average_of(self._denoiser())
        return {name.removeprefix(prefix): weight for name, weight in average.items()}

    def _denoiser(self) -> Denoiser:
        denoiser: Denoiser = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return denoiser

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the network (as it trains; the masters go with the optimiser) and the clock."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self._denoiser().network.save_pretrained(str(folder))
        (folder / CLOCK_FILE).write_text(json.dumps({"seconds": self.clock.elapsed_s}))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        weights = load_file(folder / "model.safetensors")
        # The tied decoder is not in the file; `strict` would miss it.
        self._denoiser().network.load_state_dict(weights, strict=False)
        self.clock.seconds_before = json.loads((folder / CLOCK_FILE).read_text())["seconds"]
