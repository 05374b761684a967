"""The commands' refusals: one sentence and status 2, never a traceback."""

import pytest
from typer.testing import CliRunner

from diffusiongpt.cli.main import app
from diffusiongpt.engine.errors import EngineError
from diffusiongpt.training.__main__ import COMMANDS, main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the command must be one of tokenizer, train"),
        (["dance"], "the command must be one of tokenizer, train"),
        (["train"], "train needs a configuration file"),
        (["train", "missing.yaml"], "missing.yaml"),
        (["eval", "missing", "texts"], "there is no model folder 'missing'"),
        (["ngram", "missing", "texts", "--fit", "texts"], "there is no model folder 'missing'"),
        (["export", "missing", "out"], "there is no model folder 'missing'"),
        (["export", "missing", "out", "--dtype", "int3"], "dtype must be bfloat16 or float32"),
        (["tokenizer", "missing", "--output_dir", "out"], "no file missing.jsonl"),
        (["tokenizer", "texts", "--output_dir", "out", "--vocab_size", "10"], "10"),
        (["tokenizer", "texts"], "the following arguments are required: --output_dir"),
        (["export", "missing", "out", "--sampler", "x"], "--sampler: must be JSON, got 'x'"),
        (["export", "missing", "out", "--sampler", "[1]"], "must be a JSON object, got '[1]'"),
        (["eval", "m", "texts", "--max-tokens", "0"], "--max_tokens: must be a whole number in"),
        (["eval", "m", "texts", "--draws", "0"], "--draws: must be a whole number in 1.."),
        (["eval", "m", "texts", "--max_rows", "0"], "--max_rows: must be a whole number in 1.."),
        (["eval", "m", "texts", "--colour", "0"], "unrecognized arguments: --colour 0"),
        (["eval", "m", "texts", "--record", "--against", "n"], "cannot be given with --against"),
        (["eval", "m", "texts", "--record", "--infill"], "cannot be given with --infill"),
        (["eval", "m", "texts", "--endings", "--against", "n"], "be given with --endings"),
        (["eval", "m", "texts", "--plot", "x.png"], "--plot is of --curve, which is not given"),
        (["eval", "m", "texts", "--fit", "texts"], "--fit is of --curve, which is not given"),
        (["eval", "m", "texts", "--infill", "--block_length", "4"], "be given with --infill"),
        (["ngram", "m", "texts", "--fit", "texts", "--order", "0"], "--order: must be a whole"),
        (["train", "missing.yaml", "--dry-run=3"], "missing.yaml"),
    ],
)
def test_a_refusal_is_one_sentence(arguments, words, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if arguments[:1] in (["eval"], ["ngram"], ["tokenizer"]):
        arguments = [*arguments, "--data_dir", str(data_dir)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_takes(command, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.count("--") + said.count(": ") >= 2
    if command in ("train", "sft", "sweep"):
        assert "  learning_rate: a number (0.001)" in said
        assert "  objective: block, masked, causal (block)" in said


def test_the_command_line_hands_help_over():
    said = CliRunner().invoke(app, ["eval", "--help"]).output
    assert "--against" in said


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (FileExistsError(17, "File exists", "out"), 2, "out: File exists"),
        (OSError(28, "No space left on device", "out/x"), 1, "out/x: No space left on device"),
        (EngineError("the engine says no"), 2, "the engine says no"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_machine_refuses_is_said_in_a_sentence(monkeypatch, capsys, error, code, words):
    def fail(arguments):
        raise error

    monkeypatch.setitem(COMMANDS, "export", fail)
    assert main(["export", "a", "b"]) == code
    assert capsys.readouterr().err.strip() == words


def test_the_first_of_several_processes_speaks_for_all(monkeypatch, capsys):
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "--help"]) == 0
        assert bool(capsys.readouterr().out) == said
