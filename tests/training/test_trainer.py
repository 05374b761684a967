import os
import signal
from itertools import pairwise

import pytest
import torch
import transformers
from transformers import TrainerCallback

from diffusiongpt.training.clock import RunClock
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.optimizer import build_optimizer, schedule_factor
from diffusiongpt.training.run import make_trainer, train
from diffusiongpt.training.samples import prompts_of

# The Trainer says on a machine without an accelerator that memory cannot be pinned.
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


EDITS = {
    "edit_stage_start": 0.0,
    "anneal_corruption": False,
    "corruption_prob": 0.3,
    "insertion_corruption": True,
    "deletion_corruption": True,
}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("precision", "optimizer", "start"),
    [("float32", "adamw", None), ("bf16", "muon", None), ("bf16", "adamw", 0.2)],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_config, tmp_path, precision, optimizer, start
):
    shared = {"precision": precision, "optimizer": optimizer, "max_steps": 5}
    edits = {**EDITS, "anneal_corruption": True, "edit_stage_start": start}
    diffusion = {} if start is None else edits
    run = {**shared, "output_dir": str(tmp_path / "whole")}
    whole = make_trainer(make_config(run=run, diffusion=diffusion))
    whole.train()
    run = {**shared, "output_dir": str(tmp_path / "parts")}
    config = make_config(run=run, diffusion=diffusion)
    first = make_trainer(config)
    first.callback_handler.callbacks.insert(0, StopAt(2))  # SIGTERM saves and ends the run
    first.train()
    assert first.state.global_step == 2
    second = make_trainer(config)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 5
    for ours, theirs in zip(second.masters.masters, whole.masters.masters, strict=True):
        assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))
    average, expected = second.averaged_state(), whole.averaged_state()
    assert average.keys() == expected.keys()
    assert all(average[name].equal(expected[name]) for name in average)
    assert second.clock.seconds_before > 0


@pytest.mark.parametrize("objective", ["block", "masked", "causal"])
def test_a_few_steps_lower_the_loss(make_config, objective):
    trainer = make_trainer(
        make_config(
            diffusion={"objective": objective},
            run={"max_steps": 30, "learning_rate": 1e-2, "log_steps": 10},
        )
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("edits", [None, EDITS])
def test_accumulated_rows_are_corrupted_as_one_batch(make_config, edits):
    run = {"batch_size": 2, "gradient_accumulation_steps": 2}
    whole = make_trainer(make_config(run={"batch_size": 4}, diffusion=edits or {}))
    halves = make_trainer(make_config(run=run, diffusion=edits or {}))
    rows = [whole.train_dataset[index] for index in range(4)]
    inputs = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    halved = [{key: x[part] for key, x in inputs.items()} for part in (slice(2), slice(2, 4))]
    expected = whole._corruption(inputs)
    parts = [halves._corruption(each) for each in halved]
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.cat([part[key] for part in parts]).equal(value)
    assert ("visible" in expected) == (edits is not None)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(make_config, tmp_path):
    states = []
    for workers in (0, 2, 8):
        run = {"dataloader_workers": workers, "output_dir": str(tmp_path / str(workers))}
        trainer = make_trainer(make_config(run=run, diffusion={**EDITS, "edit_stage_start": 0.5}))
        trainer.train()
        states.append(trainer.averaged_state())
    for other in states[1:]:
        assert all(states[0][name].equal(other[name]) for name in states[0])


def test_train_writes_a_folder_that_loads(make_config, tmp_path):
    folder = train(make_config(run={"max_steps": 2}))
    assert {path.name for path in folder.iterdir()} >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_the_schedule_warms_up_stays_and_decays():
    factors = [schedule_factor(progress / 20, 0.1, 0.25) for progress in range(21)]
    assert factors[0] < factors[1] < factors[2] == 1
    assert all(factor == 1 for factor in factors[2:16])
    assert all(a > b for a, b in pairwise(factors[15:]))
    assert factors[20] == 0
    assert [schedule_factor(progress, 0.1, 0.0) for progress in (0.5, 1.0, 1.01)] == [1, 1, 1]


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_decay_from_the_warm_up_on_is_the_usual_schedule(shape):
    make = getattr(transformers, f"get_{shape}_schedule_with_warmup")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    usual = make(optimizer, num_warmup_steps=10, num_training_steps=100).lr_lambdas[0]
    for step in range(1, 101):
        ours = schedule_factor(step / 100, 0.1, 0.9, shape)
        assert ours == pytest.approx(usual(step), abs=1e-9)
    assert schedule_factor(1.01, 0.1, 0.9, shape) == 0


@pytest.mark.parametrize("objective", ["block", "masked", "causal"])
@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_parts_of_a_batch_add_up_to_its_loss_under_every_norm(make_config, norm, objective):
    edits = {} if objective == "causal" else EDITS
    config = make_config(
        diffusion={**edits, "objective": objective, "loss_norm": norm},
        run={"batch_size": 2, "gradient_accumulation_steps": 2, "precision": "float32"},
    )
    trainer = make_trainer(config)
    rows = [trainer.train_dataset[index] for index in range(4)]
    parts = [
        {key: torch.stack([row[key] for row in rows[part]]) for key in rows[0]}
        for part in (slice(2), slice(2, 4))
    ]
    divisor = trainer._get_num_items_in_batch(parts, torch.device("cpu"))
    losses = [trainer.compute_loss(trainer.model, each, divisor).detach() for each in parts]
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    alone = make_trainer(
        make_config(
            diffusion={**edits, "objective": objective, "loss_norm": norm},
            run={"batch_size": 4, "precision": "float32"},
        )
    )
    expected = alone.compute_loss(alone.model, whole).detach()
    assert float(sum(losses)) == pytest.approx(float(expected), rel=1e-5)


def test_the_clock_takes_whichever_is_further():
    clock = RunClock(max_steps=100, max_minutes=1.0)
    assert clock.progress(30) == pytest.approx(0.3)
    clock.seconds_before = 45.0
    assert clock.progress(30) == pytest.approx(0.75)


def test_float32_masters_keep_what_bf16_weights_would_lose(make_config):
    layer = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    config = make_config(run={"learning_rate": 1e-4, "weight_decay": 0.0}).run
    optimizer = build_optimizer(layer, config)
    for _ in range(60):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    assert float(optimizer.masters[0][0].detach().mean()) == pytest.approx(1 - 60e-4, abs=1e-4)
    assert float(layer.weight.detach()[0, 0]) < 1.0  # one bf16 step below 1 is 0.0039


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_samples_are_written_through_the_engine_and_change_nothing(make_config, tmp_path, stage):
    plain = make_trainer(make_config(stage=stage, run={"output_dir": str(tmp_path / "plain")}))
    plain.train()
    sampled = make_trainer(make_config(stage=stage, run={"sample_steps": 2}))
    sampled.train()
    lines = (tmp_path / "run" / "samples.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 2"] * 3 + ["step 4"] * 3
    assert all(" -> " in line for line in lines)
    one, other = plain.averaged_state(), sampled.averaged_state()
    assert all(one[name].equal(other[name]) for name in one)


def test_a_next_token_model_writes_no_samples(make_config):
    with pytest.raises(ConfigError, match="sample_steps needs the objective block or masked"):
        make_config(run={"sample_steps": 2}, diffusion={"objective": "causal"})


@pytest.mark.parametrize(("length", "block_length", "longest"), [(32, 4, 8), (16, 8, 8), (8, 8, 0)])
def test_a_sampled_prompt_leaves_room_for_a_block(length, block_length, longest):
    tokens = torch.arange(length)
    row = {"tokens": tokens, "segments": torch.ones_like(tokens), "maskable": tokens >= 0}
    assert prompts_of([row], block_length) == [tokens[:longest].tolist()]
