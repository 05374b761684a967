"""The commands' refusals: one sentence and status 2, never a traceback."""

import pytest

from diffusiongpt.training.__main__ import main


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
