"""DiffusionTrainer: the Hugging Face Trainer with our loss, optimiser, schedule and checkpoints."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments

from diffusiongpt.training.checkpoints import last_checkpoint
from diffusiongpt.training.clock import RunClock, gather_objects
from diffusiongpt.training.config import RunError, TrainingConfig
from diffusiongpt.training.denoiser import Denoiser
from diffusiongpt.training.forward import EditTokens, corruption_of, edit_tokens_of
from diffusiongpt.training.loss import LOSS_NORMS
from diffusiongpt.training.optimizer import MasterWeights, build_optimizer, schedule_factor
from diffusiongpt.training.sharding import load_weights, shard, whole_of, whole_weights

CLOCK_FILE = "clock.json"
logger = logging.getLogger(__name__)


def leave_processes(trained: weakref.ref[DiffusionTrainer]) -> None:
    """End what ties this process to the others of a launch, if anything does.

    A thread of gloo that frees the tensors of its last call while the interpreter ends aborts the
    process. The threads end with the last holder of the group, and DistributedDataParallel is one.
    """
    if (trainer := trained()) is not None:
        trainer.model_wrapped = trainer._denoiser()
        trainer.accelerator.free_memory()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # split weights hold the group for good: let its threads finish that call


def ignore_sigterm(worker: int) -> None:
    """What ends a run is sent to its whole group, and the last checkpoint takes workers, too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
        dataloader_pin_memory=torch.cuda.is_available(),
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
        self.model_accepts_loss_kwargs = True  # a loss that was divided by the whole batch's count
        self._whole_weights: dict[str, Tensor] | None = None
        if config.run.fsdp:
            shard(model, self.args.world_size, self.args.device)
            accelerator: Any = self.accelerator
            accelerator.prepare_model = partial(  # or it would make DDP of it
                accelerator.prepare_model, evaluation_mode=True
            )

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """A pass over the data; none where a run that is over is resumed, which would be longer."""
        if self.clock.progress(self.state.global_step) >= 1:
            logger.info("the run was over after step %d", self.state.global_step)
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **options)  # type: ignore[no-untyped-call]

    def batch_at(self, step: int) -> dict[str, Tensor]:
        """What this process reads first in a step, as it is read in training."""
        loader: Any = self.get_train_dataloader()
        parts = self.args.gradient_accumulation_steps
        epoch, place = 0, step
        if not isinstance(self.train_dataset, IterableDataset):
            epoch, place = divmod(step, -(-len(loader) // parts))
        loader.set_epoch(epoch)
        batch: dict[str, Tensor] = next(islice(loader, place * parts, None))
        return batch

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """This part's share of the loss of the global batch: with the norm `token` the bound in
        nats per maskable token.

        Gradients are summed over accumulation steps and averaged over processes, hence the factor.
        Corruption is keyed by (seed, step, row).
        """
        batch = {key: value for key, value in inputs.items() if key != "row"}
        loss: Tensor = model(**batch, **self._corruption(batch))
        self._check_finite("the loss", loss.detach(), inputs["row"].tolist())
        if num_items_in_batch is None:
            return loss / self._divisor(batch).clamp(min=1)
        share: Tensor = loss / num_items_in_batch.clamp(min=1) * self.args.world_size
        return share

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Tensor]], device: torch.device
    ) -> Tensor:
        """What the loss is divided by, of all accumulation steps and processes together."""
        self._rows = [row for batch in batch_samples for row in batch["row"].tolist()]
        counts = [self._divisor(batch) for batch in batch_samples]
        total = torch.stack(counts).sum().to(device)
        if self.args.world_size > 1:
            gathered: Tensor = self.accelerator.gather(total)
            total = gathered.sum()
        return total

    def _divisor(self, batch: dict[str, Tensor]) -> Tensor:
        norm = LOSS_NORMS[self.config.diffusion.loss_norm]
        return norm(batch["maskable"], batch["segments"]).divisor

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if norm is not None:
            self._check_finite("the gradient's norm", norm, self._rows)
        return norm

    def _check_finite(self, what: str, value: Tensor, rows: list[int]) -> None:
        """Refuse to go on where a value of any process is no number: all of them stop alike."""
        said = float(value)
        lost = not math.isfinite(said)
        if self.args.world_size > 1:
            flag = torch.tensor(float(lost), device=self.args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            if not float(flag):
                return
        elif not lost:
            return
        found = gather_objects((said, rows) if lost else None)
        values = [each for each in found if each is not None]
        kept = gather_objects(last_checkpoint(str(self.args.output_dir)))[0]
        named = ", ".join(str(row) for _, some in values for row in some)
        raise RunError(
            f"{what} is {values[0][0]} in step {self.state.global_step + 1}, with the rows "
            f"{named} of the data (--explain-batch={self.state.global_step} shows that step); "
            + (f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet")
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save, or leave nothing half-written behind and say which checkpoint is the last."""
        try:
            with self._gathered():
                super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
            shutil.rmtree(folder, ignore_errors=True)
            kept = last_checkpoint(folder.parent)
            free = shutil.disk_usage(folder.parent).free
            raise RunError(
                f"{folder} could not be written ({' '.join(str(error).split())}; "
                f"{free:,} bytes are free there); "
                + (f"the last whole checkpoint is {kept}" if kept else "there is none before it")
            ) from error

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The Trainer's, whose workers leave the end of the run to this process."""
        loader: Any = super().get_train_dataloader()
        loader.base_dataloader.worker_init_fn = ignore_sigterm
        kept: DataLoader[Any] = loader
        return kept

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Every process gives its parts of split weights; inside, one alone may write."""
        if not self.config.run.fsdp:
            yield
            return
        self._whole_weights = whole_weights(self._denoiser().network)
        try:
            with self.masters.gathered():
                yield
        finally:
            self._whole_weights = None

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
                    self.clock.progress(step),
                    run.warmup_fraction,
                    run.decay_fraction,
                    run.decay_shape,
                ),
            )
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        """AdamW's, which `run.learning_rate` means; Muon's group comes first where there is one."""
        return float(self.optimizer.param_groups[-1]["lr"])  # type: ignore[union-attr]

    @property
    def masters(self) -> MasterWeights:
        """Our optimiser, without accelerate's wrapper."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if not isinstance(optimizer, MasterWeights):
            raise TypeError(f"the optimizer must be MasterWeights, got {type(optimizer).__name__}")
        return optimizer

    def averaged_state(self) -> dict[str, Tensor]:
        """The averaged float32 weights under the network's own names; a call of all processes."""
        denoiser = self._denoiser()
        parameters = dict(denoiser.named_parameters())
        return {
            name.removeprefix("network."): whole_of(part, parameters[name])
            for name, part in self.masters.average_of(denoiser).items()
        }

    def _denoiser(self) -> Denoiser:
        denoiser: Denoiser = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return denoiser

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the network (as it trains; the masters go with the optimiser) and the clock."""
        if not self.args.should_save:  # transformers asks every process
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self._denoiser().network.save_pretrained(str(folder), state_dict=self._whole_weights)
        (folder / CLOCK_FILE).write_text(json.dumps({"seconds": self.clock.elapsed_s}))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        load_weights(self._denoiser().network, load_file(folder / "model.safetensors"))
        self.clock.seconds_before = json.loads((folder / CLOCK_FILE).read_text())["seconds"]
