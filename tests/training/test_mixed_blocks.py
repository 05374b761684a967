"""Several block lengths in one run: who takes which step, what is exported, what is served."""

import json
from collections import Counter

import pytest
import torch

from diffusiongpt.engine import Engine, GenerationParams
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.folders import export
from diffusiongpt.training.forward import corruption_of, edit_tokens_of
from diffusiongpt.training.judge import evaluate
from diffusiongpt.training.noise import block_length_at
from diffusiongpt.training.run import load_rows, make_trainer, train

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")
MIXTURE = [4, 8, 0]


def mixed(make_config, **sections):
    diffusion = {"block_length": MIXTURE, **sections.pop("diffusion", {})}
    return make_config(diffusion=diffusion, **sections)


def test_the_steps_take_the_lengths_in_turn_whatever_came_before():
    lengths = [block_length_at(step, MIXTURE, seed=1) for step in range(30)]
    for start in range(0, 30, 3):
        assert sorted(lengths[start : start + 3]) == [0, 4, 8]
    assert len({tuple(lengths[start : start + 3]) for start in range(0, 30, 3)}) > 1
    assert block_length_at(17, MIXTURE, seed=1) == lengths[17]
    assert block_length_at(17, [8], seed=1) == 8


def test_a_steps_noise_levels_are_those_of_its_blocks(make_config, tokenizer):
    config = mixed(make_config)
    rows = load_rows(config, tokenizer)
    inputs = {key: torch.stack([rows[i][key] for i in range(4)]) for key in rows[0]}
    ids = edit_tokens_of(tokenizer)
    for step in range(6):
        drawn = corruption_of(inputs, config, ids, step, 0, 4)
        single = make_config(
            diffusion={"block_length": drawn["block_length"]}
            if drawn["block_length"]
            else {"objective": "masked"}
        )
        alone = corruption_of(inputs, single, ids, step, 0, 4)
        assert drawn["masked"].equal(alone["masked"])
        assert drawn["weights"].equal(alone["weights"])


@pytest.mark.parametrize("block_length", [4, 8, 0])
def test_a_batch_has_the_loss_of_a_model_with_that_block_alone(make_denoiser, block_length):
    mixed_one = make_denoiser(block_length=4)
    alone = make_denoiser("block" if block_length else "masked", block_length or 1)
    tokens = torch.randint(6, 250, (2, 32))
    segments = torch.ones_like(tokens)
    segments[:, 16:] = 2
    masked = torch.rand(2, 32) < 0.5
    batch = (tokens, segments, torch.ones_like(masked), masked, masked.float())
    assert mixed_one(*batch, block_length=block_length).equal(alone(*batch))


def test_one_checkpoint_serves_every_length_and_is_judged_at_each(make_config, data_dir, tmp_path):
    folder = train(mixed(make_config, run={"max_steps": 3}))
    export(folder, tmp_path / "small")
    for path in (folder, tmp_path / "small"):
        section = json.loads((path / "config.json").read_text())["diffusion"]
        assert (section["block_length"], section["block_lengths"]) == (4, MIXTURE)
    engine = Engine.from_pretrained(str(folder))
    for length in MIXTURE:
        asked = GenerationParams(max_tokens=12, block_length=length, ignore_eos=True, seed=1)
        assert len(engine.generate([[7, 8, 9]], asked)[0].token_ids) == 12
    data = make_config().data
    bounds = [evaluate(folder, ["texts"], data, 2, 2, block_length=n) for n in (None, *MIXTURE)]
    assert bounds[0] == bounds[1]
    assert len({each["texts"].nats_per_token for each in bounds}) == 3
    assert len({each["texts"].tokens for each in bounds}) == 1
    with pytest.raises(ConfigError, match=r"must be one of 4, 8, 0, .* got 16"):
        evaluate(folder, ["texts"], data, 2, 2, block_length=16)


def test_it_learns_at_every_length(make_config):
    run = {"max_steps": 45, "learning_rate": 1e-2}
    trainer = make_trainer(mixed(make_config, run=run))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    lengths = [block_length_at(step, MIXTURE, trainer.config.run.seed) for step in range(45)]
    assert Counter(lengths) == {4: 15, 8: 15, 0: 15}
    for length in MIXTURE:
        mine = [loss for loss, each in zip(losses, lengths, strict=True) if each == length]
        assert sum(mine[-3:]) < sum(mine[:3]) - 1.5


@pytest.mark.parametrize(
    ("diffusion", "words"),
    [
        ({"block_length": []}, r"must begin with a length of at least 1"),
        ({"block_length": [0, 4]}, r"must begin with a length of at least 1, .* got \[0, 4\]"),
        ({"block_length": [4, 6]}, r"must divide the longest, 6, got \[4, 6\]"),
        ({"block_length": [4, 4]}, r"name each length once, got \[4, 4\]"),
        ({"block_length": [4, -8]}, r"must be in 0\.\.1048576, got -8"),
        ({"block_length": [4, "x"]}, r"block_length must be a whole number or .*, got \[4, 'x'\]"),
        ({"block_length": [4, 64]}, r"multiple of diffusion.block_length=64, got 32"),
        ({"block_length": [4, 8], "objective": "masked"}, "need the objective block"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(make_config, diffusion, words):
    with pytest.raises(ConfigError, match=words):
        make_config(diffusion=diffusion)
