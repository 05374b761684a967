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
    ],
)
def test_bad_values_are_refused_with_the_value(section, key, value):
    with pytest.raises(ConfigError) as error:
        from_mapping({section: {key: value}})
    shown = value["a"] if isinstance(value, dict) else value
    assert str(shown) in str(error.value)


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
