"""A search over configurations: one study on a shared storage, a process per device.

Optuna chooses and remembers; a trial is an ordinary run whose bound on held-out text is
reported as it goes, so that bad ones are pruned. It is imported when it is needed.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diffusiongpt.training.config import ConfigError, RunError, TrainingConfig, to_mapping
from diffusiongpt.training.data import RowDataset
from diffusiongpt.training.judge import RowLayout, bound_on_rows, evaluation_rows
from diffusiongpt.training.run import make_trainer
from diffusiongpt.training.space import Range, SweepConfig, with_values
from diffusiongpt.training.trainer import DiffusionTrainer

BEST_FILE = "best.yaml"
HEARTBEAT_S = 30
_SESSION = "DIFFUSIONGPT_SWEEP_SESSION"

logger = logging.getLogger(__name__)


def sweep(config: SweepConfig, arguments: Sequence[str]) -> Iterator[str]:
    """Run the study until it has its trials; lines on what it found.

    Args:
        arguments: those of the command, by which the worker processes are started.

    Raises:
        ConfigError: the storage cannot be opened, or Optuna is not installed.
    """
    study = open_study(config)
    yield f"study {config.study} in {config.storage}: {count_trials(study, '')} trials so far"
    os.environ.setdefault(_SESSION, uuid.uuid4().hex)
    workers = config.workers or max(torch.cuda.device_count(), 1)
    if workers == 1:
        work(config)
    else:
        _run_workers(config, workers, arguments)
    yield from _report(config, study)


def work(config: SweepConfig) -> None:
    """One worker: trials, one after another, until the study has as many as it should."""
    optuna = _import_optuna()
    study = open_study(config)
    session = os.environ.get(_SESSION, "")
    while True:
        optuna.storages.fail_stale_trials(study)  # of workers that are gone; they are tried again
        if count_trials(study, session) >= config.trials:
            return
        study.optimize(
            lambda trial: run_trial(config, trial, session),
            n_trials=1,
            catch=(ConfigError, RunError),
        )


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
            raise _import_optuna().TrialPruned


def open_study(config: SweepConfig) -> Any:
    """The study, made or found in the storage; raises ConfigError where that cannot be opened."""
    optuna = _import_optuna()
    if config.storage.startswith("sqlite:///"):
        path = Path(config.storage.removeprefix("sqlite:///"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"storage {config.storage} cannot be opened: {error}") from error
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2)
    try:
        storage = optuna.storages.RDBStorage(
            config.storage,
            heartbeat_interval=HEARTBEAT_S,
            heartbeat_stale_trial_callback=retry,
        )
    except Exception as error:  # SQLAlchemy's and every driver's own
        said = str(error).strip().splitlines()
        what = said[0] if said else type(error).__name__
        raise ConfigError(f"storage {config.storage} cannot be opened: {what}") from error
    return optuna.create_study(
        storage=storage,
        study_name=config.study,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(
            multivariate=True, n_startup_trials=config.startup_trials
        ),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_steps
        ),
    )


def count_trials(study: Any, session: str) -> int:
    """Trials that are done, failed by their values, or run in this session.

    One whose worker was killed does not count: it is tried again.
    """
    states = _import_optuna().trial.TrialState
    done = (states.COMPLETE, states.PRUNED)
    return sum(
        trial.state in done
        or (trial.state == states.FAIL and "error" in trial.user_attrs)
        or (trial.state == states.RUNNING and trial.user_attrs.get("session") == session)
        for trial in study.get_trials(deepcopy=False)
    )


def _run_workers(config: SweepConfig, count: int, arguments: Sequence[str]) -> None:
    """A process per device (or as many as asked, on the CPU) until all have ended."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    devices = torch.cuda.device_count()
    processes: list[subprocess.Popen[bytes]] = []
    with _ended_with_us(processes):
        for index in range(count):
            environment = dict(os.environ)
            if devices:
                environment["CUDA_VISIBLE_DEVICES"] = str(index % devices)
            with (folder / f"worker-{index}.log").open("ab") as log:
                command = [sys.executable, "-m", "diffusiongpt.training", "sweep"]
                processes.append(
                    subprocess.Popen(
                        [*command, *arguments, "--worker"],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        codes = [process.wait() for process in processes]
    for index, code in enumerate(codes):
        if code:
            raise RunError(
                f"worker {index} ended with status {code}; see {folder}/worker-{index}.log"
            )


@contextmanager
def _ended_with_us(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """End the processes when this one is told to end, or fails."""

    def stop(number: int, frame: Any) -> None:
        raise RunError("the sweep was told to end; the same command goes on with it")

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
        for each, handler in before.items():
            signal.signal(each, handler)


def _report(config: SweepConfig, study: Any) -> Iterator[str]:
    states = _import_optuna().trial.TrialState
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state == states.COMPLETE]
    counts = {state.name.lower(): sum(t.state == state for t in trials) for state in states}
    yield ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if not finished:
        errors = {t.user_attrs["error"] for t in trials if "error" in t.user_attrs}
        raise RunError(
            f"no trial came to its end: {'; '.join(sorted(errors)) or 'all were pruned'}"
        )
    best = min(finished, key=lambda trial: trial.value if trial.value is not None else math.inf)
    values = {name: _value_of(config, name, best.params[name]) for name in config.space}
    folder = Path(config.output_dir)
    chosen = with_values(config.base, {**values, "run.output_dir": str(folder / "best")})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BEST_FILE).write_text(yaml.safe_dump(to_mapping(chosen), sort_keys=False))
    yield f"best: trial {best.number} with {best.value:.4f} nats/token"
    yield from (f"  {name}: {value}" for name, value in values.items())
    yield f"wrote {folder / BEST_FILE}; diffusiongpt train {folder / BEST_FILE}"


def _value_of(config: SweepConfig, name: str, stored: Any) -> Any:
    choice = config.space[name]
    if not isinstance(choice, tuple):
        return stored
    return choice[[str(each) for each in choice].index(stored)]


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("a sweep needs optuna: pip install diffusiongpt[sweep]") from error
    return optuna
