"""One trial of a sweep: a run with the trial's values, judged by its bound as it goes.

Optuna is imported when it is needed.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diffusiongpt.training.config import ConfigError, RunError, TrainingConfig
from diffusiongpt.training.data import RowDataset
from diffusiongpt.training.judge import RowLayout, bound_on_rows, evaluation_rows
from diffusiongpt.training.run import make_trainer
from diffusiongpt.training.space import Range, SweepConfig, with_values
from diffusiongpt.training.trainer import DiffusionTrainer

logger = logging.getLogger(__name__)


def run_trial(config: SweepConfig, trial: Any, session: str = "") -> float:
    """Train with the trial's values; the bound of the averaged weights in nats per token.

    Raises:
        optuna.TrialPruned: the bounds reported so far are worse than those of most trials.
        ConfigError, RunError: the values cannot be used, or the run diverged.
    """
    trial.set_user_attr("session", session)
    values = {name: suggest(trial, name, choice) for name, choice in config.space.items()}
    folder = Path(config.output_dir) / f"trial-{trial.number}"
    try:
        trainer = make_trainer(_of_trial(config.base, values, folder))
        judge = Judge(config, trainer)
        trainer.add_callback(PruneCallback(trial, judge, trainer, config.eval_every_steps))
        trainer.train()
        return judge.bound()
    except (ConfigError, RunError) as error:
        trial.set_user_attr("error", str(error))
        logger.warning("trial %d failed: %s", trial.number, error)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the best is trained again, and kept then


def suggest(trial: Any, name: str, choice: Range | tuple[Any, ...]) -> Any:
    """The trial's value of a parameter."""
    if isinstance(choice, tuple):
        # Optuna keeps numbers, strings and booleans; a list is named by its place.
        place = trial.suggest_categorical(name, [str(each) for each in choice])
        return choice[[str(each) for each in choice].index(place)]
    if choice.is_whole:
        return trial.suggest_int(name, int(choice.low), int(choice.high), log=choice.log)
    return trial.suggest_float(name, choice.low, choice.high, log=choice.log)


def _of_trial(base: TrainingConfig, values: Mapping[str, Any], folder: Path) -> TrainingConfig:
    alone = {"run.output_dir": str(folder), "run.resume": False, "run.save_steps": None}
    quiet = {"run.sample_steps": None, "run.save_every_minutes": 1e9, "run.progress_bar": False}
    return with_values(base, {**values, **alone, **quiet})


class Judge:
    """The bound of a trainer's averaged weights on the held-out files of a sweep."""

    def __init__(self, config: SweepConfig, trainer: DiffusionTrainer) -> None:
        self.config, self.trainer = config, trainer
        self.rows = [self._rows_of(name) for name in config.eval_files]

    def bound(self) -> float:
        """Nats per token, all files together."""
        nats, tokens = 0.0, 0
        denoiser = self.trainer._denoiser()
        with averaged_weights(self.trainer):
            for rows in self.rows:
                found = bound_on_rows(
                    denoiser,
                    rows,
                    self.trainer.processing_class,
                    self.config.eval_draws,
                    self.config.eval_max_rows,
                )
                nats += found.nats_per_token * found.tokens
                tokens += found.tokens
        return nats / tokens

    def _rows_of(self, name: str) -> RowDataset:
        run = self.trainer.config
        to_edge = run.diffusion.objective == "block"
        layout = RowLayout(run.data.max_seq_length, run.alignment, to_edge)
        return evaluation_rows(name, run.data, layout, self.trainer.processing_class)


@contextmanager
def averaged_weights(trainer: DiffusionTrainer) -> Iterator[None]:
    """The network with its averaged weights, until the context ends."""
    denoiser = trainer._denoiser()
    parameters = dict(denoiser.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    was_training = denoiser.training
    average = trainer.masters.average_of(denoiser)
    try:
        with torch.no_grad():
            for name, value in average.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)
        denoiser.train(was_training)


class PruneCallback(TrainerCallback):
    """Reports the bound as a run goes, and ends it where it is worse than most."""

    def __init__(
        self, trial: Any, judge: Judge, trainer: DiffusionTrainer, every_steps: int
    ) -> None:
        self.trial, self.judge, self.every_steps = trial, judge, every_steps
        self.last_step = trainer.config.run.max_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report every so many steps, but for the last, which the trial's value tells."""
        step = state.global_step
        if step % self.every_steps or step >= self.last_step:
            return
        bound = self.judge.bound()
        self.trial.report(bound, step)
        logger.info("trial %d, step %d: %.4f nats/token", self.trial.number, step, bound)
        if self.trial.should_prune():
            raise import_optuna().TrialPruned


def import_optuna() -> Any:
    """The library, or ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a sweep needs optuna: pip install diffusiongpt[sweep]") from error
    # Heartbeats are experimental, in words that say nothing to those who run a sweep.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
