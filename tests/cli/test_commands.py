"""The commands as a user types them: answers on standard output, refusals in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusiongpt.cli.main import app

SHORT = ("--max-tokens", "8", "--seed", "1")


def run(*arguments, text=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def test_generate_prints_the_same_answer_for_the_same_seed(model_dir):
    first, second, other = (
        run("generate", "hello", "--model", model_dir, "--max-tokens", 8, "--seed", seed)
        for seed in (1, 1, 2)
    )
    assert first.exit_code == second.exit_code == other.exit_code == 0
    assert first.stdout == second.stdout != other.stdout
    assert first.stdout.strip()


def test_raw_continues_the_prompt_without_the_chat_template(model_dir):
    as_chat = run("generate", "the cat", "--model", model_dir, *SHORT)
    raw = run("generate", "the cat", "--model", model_dir, "--raw", *SHORT)
    assert raw.exit_code == 0
    assert raw.stdout != as_chat.stdout


def test_watch_prints_plain_text_where_there_is_no_terminal(model_dir):
    plain = run("generate", "hello", "--model", model_dir, *SHORT)
    watched = run("generate", "hello", "--model", model_dir, "--watch", *SHORT)
    assert watched.stdout == plain.stdout


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--policy", "best", "policy must be one of ancestral, "),
        ("--max-tokens", "0", "max_tokens must be at least 1, got 0"),
        ("--max-tokens", "100000", "max_tokens"),
        ("--temperature", "9", "temperature must be in [0, 2], got 9.0"),
        ("--steps", "0", "steps must be in 1..max_tokens=256, got 0"),
        ("--stop", "", "stop string"),
        ("--top-p", "0", "top_p must be in (0, 1], got 0.0"),
    ],
)
def test_generate_refuses_bad_options_in_one_sentence(model_dir, flag, value, words):
    result = run("generate", "hello", "--model", model_dir, flag, value)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not result.stdout


def test_a_model_folder_that_cannot_be_served_is_one_sentence(model_dir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    pickled = tmp_path / "pickled"
    shutil.copytree(model_dir, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    unknown = tmp_path / "unknown"
    shutil.copytree(model_dir, unknown)
    config = json.loads((unknown / "config.json").read_text())
    del config["diffusion"]
    (unknown / "config.json").write_text(json.dumps(config))
    for command in ("generate", "serve"):
        for folder in (empty, pickled, unknown, tmp_path / "missing"):
            prompt = ("hello",) if command == "generate" else ()
            result = run(command, *prompt, "--model", folder)
            assert result.exit_code == 1, (command, folder)
            assert len(result.stderr.strip().splitlines()) == 1, result.stderr
            assert "Traceback" not in result.output


def test_bench_prints_a_table_or_json(model_dir):
    mix = ("--requests", 4, "--prompt-tokens", 8, "--repeats", 1, "--max-tokens", 4)
    mix = ("bench", "--model", model_dir, *mix, "--max-tokens", 8, "--policy", "random")
    table = run(*mix)
    assert table.exit_code == 0, table.output
    for word in ("tokens/s", "NFE", "TPF", "p95", "random", "all", "Gflop/s"):
        assert word in table.stdout
    result = json.loads(run(*mix, "--json").stdout)
    assert [row["max_tokens"] for row in result["mix"]] == [4, 8]
    assert result["total"]["tokens_per_second"]["median"] > 0


def test_bench_refuses_bad_options_in_one_sentence(model_dir):
    result = run("bench", "--model", model_dir, "--policy", "best")
    assert result.exit_code == 2
    assert "policy must be one of" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_serve_needs_a_tokenizer_and_good_settings(model_dir, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(model_dir) / name, bare / name)
    result = run("serve", "--model", bare)
    assert result.exit_code == 1
    assert "tokenizer.json" in result.stderr
    result = run("serve", "--model", model_dir, "--port", 70000)
    assert result.exit_code == 2
    assert "port" in result.stderr
    assert "70000" in result.stderr


def test_chat_answers_and_obeys_slash_commands(model_dir):
    lines = [
        "hello",
        "/steps 4",
        "/temperature hot",
        "/policy best",
        "/policy random",
        "/dance",
        "",
        "and again",
        "/reset",
        "/help",
        "/quit",
        "never read",
    ]
    result = run("chat", "--model", model_dir, *SHORT, text="\n".join(lines) + "\n")
    assert result.exit_code == 0, result.output
    assert "steps: 4" in result.stdout
    assert "/temperature takes a number, got 'hot'." in result.stdout
    assert "policy must be one of" in result.stdout
    assert "policy: random" in result.stdout
    assert "There is no command /dance" in result.stdout
    assert "The conversation is forgotten." in result.stdout
    assert "/quit             leave" in result.stdout


def test_chat_ends_with_its_input_and_forgets_the_oldest_turns_where_context_is_short(model_dir):
    questions = "\n".join(f"question {index} " + "the cat sat " * 6 for index in range(8))
    result = run("chat", "--model", model_dir, *SHORT, text=questions + "\n")
    assert result.exit_code == 0, result.output
    assert "context" not in result.output


def test_chat_says_when_one_question_is_too_long(model_dir):
    result = run("chat", "--model", model_dir, *SHORT, text="cat " * 5000 + "\nhello\n")
    assert result.exit_code == 0
    assert "context" in result.stdout


def test_training_commands_answer_through_the_same_door():
    result = run("train")
    assert result.exit_code == 2
    assert run("--help").exit_code == 0
