"""A search over configurations: one study on a shared storage, a process per device.

Optuna chooses and remembers; a trial is an ordinary run whose bound on held-out text is
reported as it goes, so that bad ones are pruned. It is imported when it is needed.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from diffusiongpt.training.config import ConfigError, RunError
from diffusiongpt.training.config_file import to_mapping
from diffusiongpt.training.sources import check_readable
from diffusiongpt.training.space import SweepConfig, with_values
from diffusiongpt.training.trial import import_optuna, run_trial

BEST_FILE = "best.yaml"
HEARTBEAT_S = 30
_SESSION = "DIFFUSIONGPT_SWEEP_SESSION"


def sweep(config: SweepConfig, arguments: Sequence[str]) -> Iterator[str]:
    """Run the study until it has its trials; lines on what it found.

    Args:
        arguments: those of the command, by which the worker processes are started.

    Raises:
        ConfigError: the storage cannot be opened, or Optuna is not installed.
        FileNotFoundError: there is no such held-out file.
    """
    check_readable(config.eval_files, config.base.data.data_dir)
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
    optuna = import_optuna()
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


def open_study(config: SweepConfig) -> Any:
    """The study, made or found in the storage; raises ConfigError where that cannot be opened."""
    optuna = import_optuna()
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
    states = import_optuna().trial.TrialState
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
    states = import_optuna().trial.TrialState
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
