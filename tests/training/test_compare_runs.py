"""The comparison of training variants: its command, its files, its refusals."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from diffusiongpt.training.config_file import load_config, to_mapping
from diffusiongpt.training.space import with_values

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare_runs.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write_plan(make_config, tmp_path):
    def write(stage="pretrain", **plan):
        base = to_mapping(make_config(stage=stage, run={"max_steps": 2}))
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({"base": base} | plan, sort_keys=False))
        return [str(path), "--output_dir", str(tmp_path / "out")]

    return write


def test_variants_are_trained_and_their_bounds_compared(script, write_plan, tmp_path, capsys):
    variants = {"plain": {}, "edits": {"diffusion.edit_stage_start": 0.0}, "left_out": {}}
    arguments = write_plan(variants=variants, bounds=["texts"], draws=1, max_rows=4)
    assert script.main([*arguments, "--only", "plain", "edits", "--batch_size", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": texts: " in line]
    assert [line.split(":")[0] for line in lines] == ["plain", "edits"]
    assert lines[0].endswith("+0.00% against the first")
    assert "edit_stage_start: 0.0" in (tmp_path / "out" / "edits" / "config.yaml").read_text()
    assert "batch_size: 2" in (tmp_path / "out" / "plain" / "config.yaml").read_text()


def test_endings_are_counted_in_every_canvas_and_by_blocks(script, write_plan, capsys):
    variants = {"canvas": {"diffusion.objective": "masked", "data.max_seq_length": 64}}
    arguments = write_plan(
        "sft", variants=variants, endings=["chats"], canvases=[12, 16], blocks=[4], count=4
    )
    assert script.main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": chats: " in line]
    assert [line.split(": ")[2] for line in lines] == [
        "canvas 12",
        "canvas 16",
        "canvas 12 by blocks of 4",
        "canvas 16 by blocks of 4",
    ]
    assert all("answers)" in line for line in lines)


def test_a_plan_that_makes_no_sense_is_refused(script, write_plan, capsys):
    for plan, words in (
        ({"variants": {}}, "must name at least one"),
        ({"variants": {"a": {}}, "speed": 3}, "unknown key 'speed'"),
        ({"variants": {"a": {"run.speed": 3}}}, "unknown key run.speed"),
        ({"variants": {"a": None}}, "variant a in"),
        ({"variants": {"a": {}}, "base": 5}, "must be a mapping with the key base"),
        ({"variants": {"a": {}}, "endings": ["chats"]}, "need canvases"),
        ({"variants": {"a": {}}, "bounds": ["nosuch"]}, "no file nosuch.jsonl"),
    ):
        assert script.main(write_plan(**plan)) == 2
        assert words in capsys.readouterr().err
    assert script.main([*write_plan(variants={"a": {}}), "--only", "b"]) == 2
    assert "--only takes variants of" in capsys.readouterr().err


def test_a_variant_that_was_trained_with_other_values_is_not_taken_for_this_one(
    script, write_plan, capsys
):
    arguments = write_plan(variants={"a": {}}, bounds=["texts"], draws=1, max_rows=4)
    assert script.main(arguments) == 0
    assert script.main(arguments) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if ": texts: " in line)
    assert first == second
    assert script.main([*arguments, "--learning_rate", "0.5"]) == 2
    assert "run.learning_rate was 0.001, is 0.5" in capsys.readouterr().err


def test_every_shipped_comparison_is_accepted(script):
    paths = sorted(Path("configs/compare").glob("*.yaml"))
    assert len(paths) > 1
    for path in paths:
        given = ["--data_dir", "d", "--tokenizer", "t", "--init_from", "m"]
        plan, base = script.read_plan(str(path), given)
        for changes in plan["variants"].values():
            with_values(base, changes)


SHRUNKEN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "local_attention": 16,
    "init_from": None,
    "logit_shift": False,
}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_takes_twenty_steps(path, data_dir, tokenizer_dir, tmp_path):
    """Each with its own objective, schedule and curriculum, on a tiny network and tiny data."""
    from diffusiongpt.training.run import make_trainer

    given = ["--data_dir", str(data_dir), "--tokenizer", str(tokenizer_dir), "--init_from", "m"]
    config = load_config(path, given)
    chats = config.stage == "sft"
    changes = {f"model.{key}": value for key, value in SHRUNKEN.items()}
    changes |= {
        "data.mix": {"chats" if chats else "texts": 1.0},
        "data.cache_dir": str(tmp_path),
        "data.max_seq_length": 64,
        "data.story_requests": 0,
        "data.generated_chats": 0,
        "run.output_dir": str(tmp_path / "run"),
        "run.batch_size": 2,
        "run.gradient_accumulation_steps": 1,
        "run.max_steps": 20,
        "run.target_param_data_ratio": None,
        "run.dataloader_workers": 0,
        "run.sample_steps": None,
        "run.compile": False,
        "run.log_steps": 1,
        "run.progress_bar": False,
        "run.save_every_minutes": 1e9,
    }
    trainer = make_trainer(with_values(config, changes))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == len(losses) == 20
    assert min(losses[-5:]) < losses[0]
