from pathlib import Path

import pytest

from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.config_file import from_mapping, load_config


def test_unknown_keys_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown key run\.learning_rat; accepted are"):
        from_mapping({"run": {"learning_rat": 1}})
    with pytest.raises(ConfigError, match="unknown key 'optim'"):
        from_mapping({"optim": {}})
    with pytest.raises(ConfigError, match="unknown option --speed"):
        load_config(None, ["--speed", "9"])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("diffusion", "objective", "gaussian"),
        ("diffusion", "block_length", 0),
        ("run", "max_steps", "many"),
        ("run", "ema_decay", 2.0),
        ("run", "compile", 3),
        ("model", "local_attention", 7),
        ("model", "hidden_size", 30),
        ("data", "mix", {"a": -1}),
        ("data", "max_seq_length", 250),
        ("model", "intermediate_size", 0),
        ("model", "global_attn_every_n_layers", 0),
        ("model", "lora_alpha", -1),
        ("data", "mix", {"a": float("nan")}),
        ("data", "mix", {"a": float("inf")}),
        ("data", "mix", {"a": True}),
        ("data", "max_documents", 0),
        ("data", "generated_chats", -1),
        ("data", "story_requests", float("inf")),
        ("diffusion", "insertion_corruption", True),
        ("run", "learning_rate", float("inf")),
        ("run", "learning_rate", -1.0),
        ("run", "weight_decay", float("nan")),
        ("run", "max_grad_norm", float("nan")),
        ("run", "beta2", 1.0),
        ("run", "max_minutes", 0.0),
        ("run", "save_every_minutes", float("nan")),
        ("run", "save_steps", 0),
        ("run", "seed", -1),
        ("run", "seed", 1 << 32),
        ("run", "report_to", "abc"),
        ("run", "output_dir", ""),
    ],
)
def test_bad_values_are_refused_with_the_value(section, key, value):
    with pytest.raises(ConfigError) as error:
        from_mapping({section: {key: value}})
    shown = value["a"] if isinstance(value, dict) else value
    assert (f"{section}.{key}" if key == "insertion_corruption" else str(shown)) in str(error.value)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("run: 5", ["--run.batch_size", "3"], "'run' must be a mapping, got 5"),
        ("model: []", [], r"section 'model' must be a mapping, got \[\]"),
        ("", ["--stage.x", "1"], "unknown option --stage.x; sections are model, data"),
        ("", ["--bach_size", "3"], "unknown option --bach_size; did you mean --batch_size?"),
        ("data: {mix: {1: 1}}", [], "data.mix must name files or datasets, got 1"),
        ("data: {generated_chats: 5}", [], "which the stage sft learns, got 5 and 0 with"),
    ],
)
def test_what_has_another_shape_is_refused(tmp_path, text, options, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path, options)


def test_options_fill_empty_sections_and_keep_names_of_the_mix(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  mix:\nrun:\n")
    config = load_config(path, ["--run.batch-size", "3", "--data.mix.my-file.x", "1e-3"])
    assert (config.run.batch_size, config.data.mix) == (3, {"my-file.x": 1e-3})


def test_a_file_that_is_no_utf8_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"data: {data_dir: caf\xe9}")
    with pytest.raises(ConfigError, match=r"config.yaml must be UTF-8, and is not"):
        load_config(path)


def test_yaml_and_overrides_meet(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("run: {learning_rate: 1e-3, batch_size: 8}\ndata:\n  data_dir: ???\n")
    config = load_config(path, ["--batch-size", "16", "--data_dir=somewhere", "--run.seed", "3"])
    assert (config.run.learning_rate, config.run.batch_size, config.run.seed) == (1e-3, 16, 3)
    assert config.data.data_dir == "somewhere"


def test_a_required_value_must_be_passed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  data_dir: ???\n")
    with pytest.raises(ConfigError, match="pass --data_dir"):
        load_config(path)


def test_what_is_no_yaml_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: {data_dir: ???}\n")
    with pytest.raises(ConfigError, match=r"config.yaml must be YAML, and cannot be read: while"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"--mix must be YAML, and cannot be read: while"):
        load_config(None, ["--mix", "{a"])


def test_every_shipped_config_is_accepted():
    given = ["--data_dir", "d", "--tokenizer", "t", "--init_from", "m"]
    paths = sorted(Path("configs").glob("*.yaml"))
    assert len(paths) > 4
    for path in paths:
        load_config(path, given)
