"""What `train` says before it starts: a batch, and what the run costs."""

import dataclasses
import itertools
import re

import pytest
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.config_file import to_mapping
from diffusiongpt.training.dry_run import (
    count_parameters,
    dry_run,
    duration,
    flop,
    with_ratio,
)
from diffusiongpt.training.flops import blocks_of, flops_per_token, step_flops
from diffusiongpt.training.noise import block_length_at
from diffusiongpt.training.preview import report_cost, show_batch
from diffusiongpt.training.run import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


def test_a_batch_is_shown_position_by_position(make_config):
    config = make_config(stage="sft", diffusion={"edit_stage_start": 0.5})
    lines = list(show_batch(config, step=0))
    table = lines[2:34]
    assert len(table) == 32
    roles = [line.split()[2] for line in table]
    assert set(roles) <= {"given", "masked", "padding"}
    assert "masked" in roles
    for line, role in zip(table, roles, strict=True):
        assert ("<|mask|>" in line) == (role == "masked")
        assert (float(line.split()[3]) > 0) == (role == "masked")
    assert len([line for line in lines if " target: " in line]) == config.run.batch_size
    late = [line.split()[2] for line in list(show_batch(config, step=3))[2:34]]
    assert "visible" in late


def test_a_dry_run_says_what_it_costs_and_writes_nothing(make_config, tmp_path):
    trainer = make_trainer(make_config(run={"gradient_accumulation_steps": 2}))
    lines = dict(line.split(": ", 1) for line in dry_run(trainer))
    total = count_parameters(trainer.model.network)
    assert lines["parameters"] == f"{total:,}, of which {total:,} are trained"
    assert lines["steps"].startswith("4 of 256 tokens, 1,024 in all")
    assert "tokens/s" in lines["time"]
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("block_length", [4, [8, 4, 0]])
@pytest.mark.parametrize("objective", ["block", "masked", "causal"])
def test_operations_are_those_that_a_step_computes(make_config, objective, block_length):
    block_length = block_length if objective == "block" else 4
    diffusion = {"objective": objective, "block_length": block_length}
    trainer = make_trainer(make_config(diffusion=diffusion, model={"local_attention": 8}))
    batch = next(iter(trainer.get_train_dataloader()))
    rows, length = batch["tokens"].shape
    for step in range(3):  # the lengths that take turns
        trainer.state.global_step = step
        headed = []
        trainer.model.network.decoder.register_forward_pre_hook(
            lambda _, inputs, headed=headed: headed.append(len(inputs[0]))
        )
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            trainer.compute_loss(trainer.model, batch).backward()
        kinds = blocks_of(trainer.config)
        kind = block_length_at(step, kinds, trainer.config.run.seed)
        counted = step_flops(trainer.model, (kind,), rows, length, headed[0])
        assert counter.get_total_flops() == counted


def test_operations_per_token_are_the_mean_over_the_lengths(make_config):
    trainer = make_trainer(make_config(diffusion={"block_length": [8, 0]}))
    denoiser, length = trainer.model, trainer.config.data.max_seq_length
    each = [step_flops(denoiser, (block,), 1, length, length / 2) / length for block in (8, 0)]
    assert flops_per_token(denoiser, trainer.config) == pytest.approx(sum(each) / 2)


def test_the_ratio_of_tokens_to_parameters_sets_the_steps(make_config):
    config = make_config(run={"target_param_data_ratio": 20.0})
    assert with_ratio(config, 1000, 1).run.max_steps == 157  # 20,000 tokens of 128 a step
    assert with_ratio(config, 1000, 4).run.max_steps == 40
    trainer = make_trainer(config)
    total = count_parameters(trainer.model.network)
    assert trainer.args.max_steps == trainer.clock.max_steps == -(-20 * total // 128)


def test_the_commands_say_and_do_not_train(make_config, tmp_path, capsys):
    config = make_config()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_mapping(dataclasses.replace(config))))
    assert main(["train", str(path), "--explain-batch", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "position" in said
    assert "in all, measured over 2 steps" in said
    assert main(["train", str(path), "--explain-batch=soon"]) == 2
    assert "takes a step, got 'soon'" in capsys.readouterr().err
    assert main(["train", str(path), "--explain-batch", "3"]) == 0
    assert capsys.readouterr().out.startswith("step 3, ")
    assert main(["train", str(path), "--dry-run=3"]) == 2
    assert "--dry-run takes no value, got '3'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize("step", [0, 3, 11])  # the data is seen nine times
@pytest.mark.parametrize("edits", [None, 0.0])
def test_the_batch_that_is_shown_is_the_one_of_that_step(
    make_config, data_dir, tmp_path, edits, step
):
    run = {"max_steps": 12, "gradient_accumulation_steps": 2, "batch_size": 2}
    diffusion = {"edit_stage_start": edits}
    data = {"max_documents": 2}
    config = make_config(run=run, diffusion=diffusion, data=data)
    trainer, read, seen = make_trainer(config), {}, {}
    forward, compute = trainer.model.forward, trainer.compute_loss

    def watch_rows(model, inputs, **rest):
        read.setdefault(trainer.state.global_step, inputs["row"].tolist())
        return compute(model, inputs, **rest)

    def watch_forward(**given):
        seen.setdefault(trainer.state.global_step, given)
        return forward(**given)

    trainer.compute_loss, trainer.model.forward = watch_rows, watch_forward
    trainer.train()
    shown = trainer.processing_class.decode
    given, rows = seen[step], read[step]
    noisy = given.get("noisy", given["tokens"].masked_fill(given["masked"], 4))
    lines = [line for line in show_batch(config, step) if " input:  " in line]
    assert lines == [
        f"row {number} input:  {shown(noisy[row][given['segments'][row] > 0])!r}"
        for row, number in enumerate(rows)
    ]


def test_a_next_token_model_is_shown_what_follows(make_config):
    lines = list(show_batch(make_config(diffusion={"objective": "causal"}), step=0))
    rows = [line.split(maxsplit=4) for line in lines[2:34]]
    for (_, segment, role, _, said), (_, later, _, _, follows) in itertools.pairwise(rows):
        if segment == later != "0":
            assert (role, said.split("'")[3]) == ("next", follows.split("'")[1])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "3.0 seconds"), (300, "5.0 minutes"), (90_600, "25.2 hours"), (864_000, "10.0 days")],
)
def test_times_and_operations_are_said_in_units_that_suit_them(seconds, words):
    assert duration(seconds) == words
    assert (flop(0), flop(1.01e11), flop(1.2e16)) == ("0 FLOP", "101 GFLOP", "12 PFLOP")


def test_the_cost_of_a_run_by_the_clock_is_that_of_its_minutes(make_config, tmp_path):
    config = make_config(run={"max_minutes": 0.01, "max_steps": 100_000})
    (said,) = (line for line in report_cost(config) if "at the latest" in line)
    steps, tokens = re.search(r"about ([\d,]+) steps and ([\d,]+) tokens", said).groups()
    assert int(tokens.replace(",", "")) == 128 * int(steps.replace(",", "")) < 12_800_000
    assert not (tmp_path / "run").exists()
