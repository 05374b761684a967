"""Runs that are cut off, diverge, fill the disk or go on with another configuration."""

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.checkpoints import last_checkpoint
from diffusiongpt.training.config import ConfigError, RunError
from diffusiongpt.training.config_file import to_mapping
from diffusiongpt.training.run import make_trainer, train

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")

DIES_WHILE_SAVING = """
import os, signal, sys
from diffusiongpt.training.__main__ import main
from diffusiongpt.training.trainer import DiffusionTrainer

whole = DiffusionTrainer._save_optimizer_and_scheduler
def save(self, folder):
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, folder)
DiffusionTrainer._save_optimizer_and_scheduler = save
main(["train", sys.argv[1]])
"""


@pytest.fixture
def write_config(make_config, tmp_path):
    def write(name, **sections):
        run = {"output_dir": str(tmp_path / name), **sections.pop("run", {})}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(to_mapping(make_config(run=run, **sections))))
        return path

    return write


def run_python(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    return done.returncode, done.stderr


def losses_of(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_run_killed_while_it_saves_resumes_as_if_nothing_had_happened(write_config, tmp_path):
    mixture = {"block_length": [4, 8], "edit_stage_start": 0.4}
    run = {"max_steps": 6, "save_steps": 2, "dataloader_workers": 0}
    killed = write_config("killed", run=run, diffusion=mixture)
    code, _ = run_python("-c", DIES_WHILE_SAVING, killed)
    assert code == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoint-4").is_dir()
    assert last_checkpoint(tmp_path / "killed") == str(tmp_path / "killed" / "checkpoint-2")
    assert main(["train", str(killed)]) == 0
    assert main(["train", str(write_config("whole", run=run, diffusion=mixture))]) == 0
    ours, theirs = (
        load_file(tmp_path / name / "final" / "model.safetensors") for name in ("killed", "whole")
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    states = [
        torch.load(tmp_path / name / "checkpoint-6" / "optimizer.pt", weights_only=False)
        for name in ("killed", "whole")
    ]
    for one, other in zip(states[0]["masters"], states[1]["masters"], strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))


class Damage(TrainerCallback):
    """Puts a NaN into a weight after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                next(model.parameters())[7] = torch.nan


def test_a_loss_that_is_not_a_number_stops_and_names_the_batch(make_config, tmp_path):
    trainer = make_trainer(make_config(run={"max_steps": 6, "save_steps": 2}))
    trainer.callback_handler.callbacks.insert(0, Damage(3))
    with pytest.raises(RunError) as error:
        trainer.train()
    kept = tmp_path / "run" / "checkpoint-2"
    words = f"the loss is nan in step 4, with the rows {', '.join(map(str, trainer._rows))} of"
    assert str(error.value).startswith(words)
    assert len(trainer._rows) == 4
    assert str(error.value).endswith(f"the last good checkpoint is {kept}")
    assert last_checkpoint(tmp_path / "run") == str(kept)
    assert all(weight.isfinite().all() for weight in load_file(kept / "model.safetensors").values())


def test_a_gradient_that_is_not_finite_stops_before_it_is_applied(make_config):
    trainer = make_trainer(make_config())
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        RunError, match=r"the gradient's norm is (nan|inf) in step 1, with the rows"
    ):
        trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


@contextlib.contextmanager
def no_file_larger_than(size):
    """What a full disk does: a write fails in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FillTheDisk(TrainerCallback):
    def __init__(self, step, stack, size):
        self.step, self.stack, self.size = step, stack, size

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.stack.enter_context(no_file_larger_than(self.size))


@pytest.mark.parametrize("size", [1000, 60_000])  # fails in the weights, and in the optimiser
def test_a_full_disk_leaves_the_checkpoint_before_loadable(make_config, tmp_path, size):
    config = make_config(run={"max_steps": 6, "save_steps": 2})
    trainer = make_trainer(config)
    with contextlib.ExitStack() as stack:
        trainer.callback_handler.callbacks.insert(0, FillTheDisk(3, stack, size))
        with pytest.raises(RunError) as error:
            trainer.train()
    kept = tmp_path / "run" / "checkpoint-2"
    assert "checkpoint-4 could not be written" in str(error.value)
    assert str(error.value).endswith(f"the last whole checkpoint is {kept}")
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    assert load_file(train(config) / "model.safetensors")
    assert (tmp_path / "run" / "checkpoint-6").is_dir()


def test_another_configuration_is_not_resumed_and_the_keys_are_named(make_config, tmp_path, caplog):
    run = {"max_steps": 2, "save_steps": 2}
    train(make_config(run=run))
    changed = make_config(
        run={**run, "learning_rate": 0.5, "max_steps": 4}, diffusion={"block_length": [4, 8]}
    )
    with pytest.raises(ConfigError) as error:
        train(changed)
    said = str(error.value)
    assert "diffusion.block_length was 4, is [4, 8]" in said
    assert "run.learning_rate was 0.001, is 0.5" in said
    assert "max_steps" not in said
    with caplog.at_level("INFO"):
        train(make_config(run={**run, "max_steps": 3}))
    assert "resuming with run.max_steps was 2, is 3" in caplog.text
    anew = make_config(run={**run, "learning_rate": 0.5, "resume": False})
    train(anew)
    assert len(losses_of(tmp_path / "run" / "checkpoint-2")) == 2
    assert not (tmp_path / "run" / "checkpoint-3").exists()


@pytest.mark.parametrize("kind", ["FSDP", "DeepSpeed"])
def test_sharded_weights_are_refused_and_not_silently_replicated(make_config, monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind.upper()}", "true")
    with pytest.raises(ConfigError, match=f"accelerate asks for {kind}, which cannot be honoured"):
        make_trainer(make_config())


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_else(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/run"):
        config = make_config(run={"output_dir": str(tmp_path / name)}, data={"tokenizer": "none"})
        with pytest.raises(ConfigError, match=r"run\.output_dir must be a folder that can be"):
            train(config)


def test_a_tracker_that_is_not_installed_is_refused(make_config, monkeypatch):
    monkeypatch.setattr("diffusiongpt.training.run.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to=wandb needs it to be installed: pip install"):
        make_trainer(make_config(run={"report_to": "wandb"}))


def test_an_unknown_activation_is_refused_with_those_there_are(make_config):
    with pytest.raises(ConfigError, match=r"must be one of .*gelu.*, got 'abc'"):
        make_trainer(make_config(model={"hidden_activation": "abc"}))


def test_progress_is_lines_where_nobody_looks_on_and_names_the_learning_rate_that_was_set(
    make_config, caplog, capsys
):
    rates = {"learning_rate": 1e-3, "muon_learning_rate": 0.5, "optimizer": "muon"}
    with caplog.at_level("INFO"):
        train(make_config(run={**rates, "max_steps": 4, "warmup_fraction": 0, "decay_fraction": 0}))
    assert caplog.text.count("tokens/s") == 4
    assert "step 4 loss" in caplog.text
    assert "lr 1.0e-03" in caplog.text
    assert capsys.readouterr().out == ""


def test_a_full_disk_at_the_end_leaves_what_stood_there_and_the_checkpoint(
    make_config, tmp_path, monkeypatch
):
    config = make_config(run={"max_steps": 1})
    before = load_file(train(config) / "model.safetensors")

    def fail(*arguments, **options):
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("diffusiongpt.training.export.save_file", fail)
        with pytest.raises(RunError, match=r"final could not be written \(No space .*goes on from"):
            train(make_config(run={"max_steps": 2}))
    kept = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all(kept[name].equal(before[name]) for name in before)
    assert not (tmp_path / "run" / "final.partial").exists()
    assert load_file(train(make_config(run={"max_steps": 2})) / "model.safetensors")


def test_what_a_killed_run_left_of_its_end_is_not_in_the_next_one(make_config, tmp_path):
    left = tmp_path / "run" / "final.partial"
    left.mkdir(parents=True)
    (left / "model-00002-of-00002.safetensors").write_bytes(b"half of it")
    final = train(make_config(run={"max_steps": 1}))
    assert not (final / "model-00002-of-00002.safetensors").exists()
    assert not left.exists()


class EndTheGroup(TrainerCallback):
    """What `timeout` and a scheduler do: the signal goes to the workers, too."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
                child.join(0.5)
                assert child.is_alive()
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_with_workers_that_is_told_to_end_saves_first(make_config, tmp_path):
    trainer = make_trainer(make_config(run={"max_steps": 8, "dataloader_workers": 1}))
    trainer.callback_handler.callbacks.insert(0, EndTheGroup())
    trainer.train()
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")


@pytest.mark.parametrize("run", [{"max_steps": 3}, {"max_steps": 99, "max_minutes": 0.001}])
def test_a_run_that_is_over_gets_no_longer_when_it_is_begun_again(make_config, tmp_path, run):
    config = make_config(run=run)
    before = load_file(train(config) / "model.safetensors")
    kept = last_checkpoint(tmp_path / "run")
    after = load_file(train(config) / "model.safetensors")
    assert last_checkpoint(tmp_path / "run") == kept
    assert all(after[name].equal(before[name]) for name in before)
    fewer = make_config(run={**run, "max_steps": 1})
    assert load_file(train(fewer) / "model.safetensors").keys() == before.keys()
    assert last_checkpoint(tmp_path / "run") == kept


def test_other_rows_than_a_run_began_with_are_refused(make_config, tmp_path, data_dir):
    shutil.copy(data_dir / "texts.jsonl", tmp_path)
    data = {"data_dir": str(tmp_path)}
    train(make_config(data=data, run={"max_steps": 1}))
    lines = (tmp_path / "texts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "texts.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(ConfigError, match=r"on other data: \d+ rows \w+, now \d+ rows \w+; the"):
        train(make_config(data=data, run={"max_steps": 2}))
    train(make_config(data=data, run={"max_steps": 2, "resume": False}))


def test_a_run_whose_configuration_is_damaged_is_not_resumed(make_config, tmp_path):
    train(make_config(run={"max_steps": 1}))
    (tmp_path / "run" / "config.yaml").write_bytes(b"run: {max_steps: \xe9")
    with pytest.raises(ConfigError, match=r"config\.yaml must be UTF-8, and is not"):
        train(make_config(run={"max_steps": 2}))
