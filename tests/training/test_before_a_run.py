"""What `train` says before it starts: a batch, and what the run costs."""

import dataclasses

import pytest
import yaml

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.config import to_mapping
from diffusiongpt.training.dry_run import count_parameters, dry_run, flops_per_token, with_ratio
from diffusiongpt.training.run import make_trainer, show_batch

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


def test_operations_follow_the_weights_and_the_streams(make_config):
    block = make_trainer(make_config())
    masked = make_trainer(make_config(diffusion={"objective": "masked"}))
    network = block.model.network
    head = network.decoder.weight.numel()
    inside = count_parameters(network) - head
    attention = 12 * 3 * 16 * 32
    assert flops_per_token(network, block.config) == 2 * (6 * inside + attention) + 3 * head
    assert flops_per_token(network, masked.config) == 6 * inside + attention + 3 * head


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
    assert "minutes in all" in said
    assert main(["train", str(path), "--explain-batch=soon"]) == 2
    assert "takes a step, got 'soon'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "final").exists()
