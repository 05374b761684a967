"""Models side by side on the same rows: bounds of diffusion, exact likelihoods of next tokens."""

import math

import pytest
import torch

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.evaluate import counted_tokens, row_likelihoods
from diffusiongpt.training.run import train
from diffusiongpt.training.tokenizer import save_tokenizer, train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


def test_a_next_token_model_is_scored_token_by_token_by_what_stands_before(make_denoiser):
    denoiser = make_denoiser("causal")
    tokens = torch.randint(6, 250, (1, 12))
    segments = torch.tensor([[1] * 7 + [2] * 5])
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[0, 4] = False
    tokens[0, 4] = denoiser.banned[0]  # such as padding, of which no count is taken
    uniform = math.log(denoiser.network.config.vocab_size - len(denoiser.banned))
    expected = 0.0
    for start, stop in ((0, 7), (7, 12)):
        expected += uniform
        for position in range(start + 1, stop):
            if counted[0, position]:
                # Positions are those of the row, whatever segment they are in.
                seen = tokens[:, :position], segments[:, :position]
                logits = denoiser.head(denoiser.canvas_hidden(*seen, 1)[:, -1])
                nll = denoiser.nll_of_logits(logits, tokens[:, position], denoiser.banned)
                expected += float(nll.detach())
    with torch.no_grad():
        got = float(row_likelihoods(denoiser, tokens, segments, counted))
    assert got == pytest.approx(expected, rel=1e-5)


def test_the_first_of_its_repeated_endings_is_all_that_counts(make_denoiser):
    tokens = torch.tensor([[7, 8, 3, 3, 3, 3]])
    everything = torch.ones_like(tokens, dtype=torch.bool)
    counted = counted_tokens(tokens, torch.ones_like(tokens), everything, (3,))
    assert counted.tolist() == [[True, True, True, False, False, False]]


@pytest.fixture
def trained(make_config, tmp_path):
    def build(name, **diffusion):
        run = {"output_dir": str(tmp_path / name), "max_steps": 2}
        return str(train(make_config(diffusion=diffusion, run=run)))

    return build


def test_one_table_holds_every_block_length_and_the_next_token_model(trained, data_dir, capsys):
    mixed, causal = trained("mixed", block_length=[4, 8, 0]), trained("ar", objective="causal")
    capsys.readouterr()
    where = ["--data_dir", str(data_dir), "--draws", "2", "--max_rows", "4"]
    assert main(["eval", mixed, "texts", *where, "--against", causal]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["data", "model", "objective", "parameters", "nats/token", "bits/byte"]
    assert len(lines) == 4
    assert [line.split(mixed)[1].split("  ")[0].strip() for line in lines[:3]] == [
        "block 4",
        "block 8",
        "masked",
    ]
    assert lines[3].split()[1:3] == [causal, "causal"]
    assert [("<=" in line, " = " in line) for line in lines] == [(True, False)] * 3 + [
        (False, True)
    ]
    assert main(["eval", causal, "texts", *where]) == 0
    assert "exact)" in capsys.readouterr().out


def test_models_of_different_tokenizers_are_not_compared(trained, data_dir, tmp_path, capsys):
    one, other = trained("one"), trained("other")
    save_tokenizer(train_tokenizer(["other words here"] * 9, vocab_size=290, max_length=64), other)
    assert main(["eval", one, "texts", "--data_dir", str(data_dir), "--against", other]) == 2
    assert "has another tokenizer than" in capsys.readouterr().err


def test_a_next_token_model_is_not_exported_to_be_served(trained, tmp_path, capsys):
    assert main(["export", trained("ar", objective="causal"), str(tmp_path / "out")]) == 2
    assert "is a next-token model, which cannot be served" in capsys.readouterr().err
