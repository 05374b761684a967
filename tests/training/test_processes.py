"""Runs of two processes that each have all weights, or a part of them: the run of one process."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.config_file import to_mapping
from diffusiongpt.training.run import check_folder, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")

TRAINS_BOTH = """
import json, os, pathlib, shutil, sys
import torch.distributed
from diffusiongpt.training.__main__ import main
from diffusiongpt.training.config_file import load_config
from diffusiongpt.training.run import make_trainer

whole, streamed, path = sys.argv[1:]
assert main(["sft", whole]) == 0
assert main(["sft", streamed]) == 0
rank, config = os.environ["RANK"], load_config(path)
run = pathlib.Path(config.run.output_dir)
trainer = make_trainer(config)
trainer.create_optimizer()
held = sum(part.numel() for group in trainer.masters.masters for part in group)
(run.parent / f"held-{rank}.json").write_text(json.dumps(held))
assert main(["sft", path]) == 0
torch.distributed.barrier()
if rank == "0":
    os.rename(run / "final", run / "first")
    shutil.rmtree(run / "checkpoint-5")
torch.distributed.barrier()
assert main(["sft", path]) == 0
"""

STREAMED = {"streaming": True, "shuffle_buffer_size": 8}
SHORT = {"max_steps": 3, "sample_steps": None}

LOSES_ONE = """
import atexit, os, pathlib, sys
import torch.distributed
from diffusiongpt.training.config import RunError
from diffusiongpt.training.config_file import load_config
from diffusiongpt.training.run import make_trainer

rank, config = os.environ["RANK"], load_config(sys.argv[1])
folder = pathlib.Path(config.run.output_dir).parent


def list_threads():
    names = sorted(path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm"))
    (folder / f"threads-{rank}").write_text("".join(names))


atexit.register(list_threads)  # what is registered first runs last
trainer = make_trainer(config)


def lose(module, inputs, loss):
    here = rank == "1" and trainer.state.global_step == 3
    return loss * float("nan") if here else loss


trainer.model.register_forward_hook(lose)
try:
    trainer.train()
except RunError as error:
    (folder / f"said-{rank}").write_text(str(error))
    torch.distributed.barrier()
"""


@pytest.fixture
def write_config(make_config, tmp_path):
    def write(name, data=None, **run):
        shared = {"max_steps": 5, "save_steps": 3, "learning_rate": 1e-2, "sample_steps": 4}
        folder = {"output_dir": str(tmp_path / name)}
        config = make_config(
            stage="sft",
            data=data or {},
            diffusion={"block_length": [4, 8]},
            run={**shared, **folder, **run},
        )
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(to_mapping(config)))
        return path

    return write


def launch_two(folder, text, *arguments):
    """Run a script in two processes that know of each other."""
    script = folder / "script.py"
    script.write_text(text)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [sys.executable, *launch, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def two_processes(write_config, tmp_path):
    """Two processes run with all weights (`whole`), and with half each, to the end and resumed."""
    whole = write_config("whole", batch_size=2)
    streamed = write_config("streamed", STREAMED, batch_size=2, **SHORT)
    split = write_config("split", batch_size=2, fsdp=True)
    launch_two(tmp_path, TRAINS_BOTH, whole, streamed, split)
    return tmp_path


def losses_of(checkpoint):
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def weights_of(run):
    return load_file(run / "final" / "model.safetensors")


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() <= tolerance, name


def test_two_processes_have_the_run_of_one_with_whole_and_with_split_weights(
    write_config, two_processes
):
    folder = two_processes
    assert main(["sft", str(write_config("one"))]) == 0
    one, whole, split = (
        losses_of(folder / name / "checkpoint-5") for name in ("one", "whole", "split")
    )
    assert len(one) == 5
    assert whole == pytest.approx(one, rel=1e-5)
    assert split == pytest.approx(one, rel=1e-5)
    weights, of_whole, of_split = (weights_of(folder / name) for name in ("one", "whole", "split"))
    assert_same(of_whole, weights, 1e-5)
    assert_same(of_split, weights, 1e-5)
    check_folder(folder / "split" / "final")
    samples = (folder / "split" / "samples.txt").read_text().splitlines()
    assert len(samples) == 6  # three prompts, written by one process in each part of the run

    assert main(["sft", str(write_config("stream", STREAMED, **SHORT))]) == 0
    one_stream, two_streamed = (
        losses_of(folder / name / "checkpoint-3") for name in ("stream", "streamed")
    )
    assert two_streamed == pytest.approx(one_stream, rel=1e-5)

    # Each process holds about half, and nothing twice.
    held = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(held) == sum(weight.numel() for weight in weights.values())
    assert max(held) < 0.6 * sum(held)

    # It resumes with two processes bit for bit, and its checkpoint goes on in one alone.
    assert_same(of_split, load_file(folder / "split" / "first" / "model.safetensors"), 0)
    shutil.copytree(folder / "split" / "checkpoint-3", folder / "alone" / "checkpoint-3")
    assert main(["sft", str(write_config("alone"))]) == 0
    assert losses_of(folder / "alone" / "checkpoint-5") == pytest.approx(one, rel=1e-5)
    assert_same(weights_of(folder / "alone"), weights, 1e-5)


def test_what_one_process_loses_stops_both_at_once_with_one_sentence(write_config, tmp_path):
    path = write_config("lost", batch_size=2, max_steps=8, sample_steps=None)
    launch_two(tmp_path, LOSES_ONE, path)  # without agreement one waits for half an hour
    one, other = ((tmp_path / f"said-{rank}").read_text() for rank in (0, 1))
    assert one == other
    kept = tmp_path / "lost" / "checkpoint-3"
    assert re.fullmatch(
        r"the loss is nan in step 4, with the rows \d+, \d+ of the data "
        r"\(--explain-batch=3 shows that step\); "
        rf"the last good checkpoint is {re.escape(str(kept))}",
        one,
    )
    # A thread of gloo that outlives the interpreter may abort the process.
    for rank in (0, 1):
        assert "gloo" not in (tmp_path / f"threads-{rank}").read_text()


def test_what_cannot_be_split_is_refused(make_config):
    with pytest.raises(ConfigError, match="splits the weights over processes, and there is 1"):
        make_trainer(make_config(run={"fsdp": True}))
    with pytest.raises(ConfigError, match=r"needs run.optimizer adamw, because muon needs whole"):
        make_config(run={"fsdp": True, "optimizer": "muon"})
    with pytest.raises(ConfigError, match=r"needs model.lora_rank 0, .* got 4"):
        make_config(run={"fsdp": True}, model={"init_from": "somewhere", "lora_rank": 4})
