"""A sweep: trials on a shared storage, pruned, resumed, and the best one's configuration."""

import json
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest
import yaml

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.config_file import load_config, to_mapping
from diffusiongpt.training.run import make_trainer
from diffusiongpt.training.space import Range, load_sweep, with_values
from diffusiongpt.training.sweep import count_trials, open_study
from diffusiongpt.training.trial import Judge, averaged_weights

optuna = pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:.*multivariate.*"),
    pytest.mark.filterwarnings("ignore:Heartbeat of storage"),
]


@pytest.fixture
def write_sweep(make_config, tmp_path):
    """A sweep's file beside its base; keys may be replaced, or left out with None."""

    def write(**changes):
        config = to_mapping(make_config(run={"max_steps": 4, "warmup_fraction": 0.0}))
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
        values = {
            "base": "base.yaml",
            "study": "test",
            "storage": f"sqlite:///{tmp_path}/study/study.db",
            "output_dir": str(tmp_path / "sweep"),
            "trials": 3,
            "startup_trials": 1,
            "eval_files": ["texts"],
            "eval_draws": 1,
            "eval_max_rows": 4,
            "eval_every_steps": 2,
            "space": {
                "run.learning_rate": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
                "diffusion.block_length": {"choices": [4, [4, 8]]},
                "model.num_hidden_layers": {"low": 1, "high": 2},
            },
        }
        values = {key: value for key, value in {**values, **changes}.items() if value is not None}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
        return str(tmp_path / "sweep.yaml")

    return write


def test_a_sweep_resumes_finds_the_best_and_train_takes_what_it_wrote(
    write_sweep, tmp_path, capsys
):
    path = write_sweep()
    assert main(["sweep", path, "--trials", "2"]) == 0
    assert main(["sweep", path]) == 0
    said = capsys.readouterr().out
    assert "2 trials so far" in said
    study = open_study(load_sweep(path))
    trials = study.get_trials()
    assert len(trials) == 3
    finished = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    best = min(finished, key=lambda trial: trial.value)
    assert f"best: trial {best.number} with {best.value:.4f} nats/token" in said
    assert trials[0].intermediate_values.keys() == {2}
    written = load_config(tmp_path / "sweep" / "best.yaml")
    assert written.run.learning_rate == pytest.approx(best.params["run.learning_rate"])
    lengths = {"4": 4, "[4, 8]": (4, 8)}
    assert written.diffusion.block_length == lengths[best.params["diffusion.block_length"]]
    assert written.model.num_hidden_layers == best.params["model.num_hidden_layers"]
    assert not list((tmp_path / "sweep").glob("trial-*"))
    # What it reports is what training that configuration gives.
    trainer = make_trainer(written)
    trainer.train()
    assert Judge(load_sweep(path), trainer).bound() == pytest.approx(best.value, abs=1e-6)


def test_a_trial_that_is_worse_than_most_is_pruned(write_sweep):
    rates = {"run.learning_rate": {"choices": [1e-9, 1e-2]}}
    config = load_sweep(write_sweep(space=rates, trials=3))
    study = open_study(config)
    for rate in ("0.01", "0.01", "1e-09"):
        study.enqueue_trial({"run.learning_rate": rate})
    assert main(["sweep", write_sweep(space=rates, trials=3)]) == 0
    states = [trial.state.name for trial in study.get_trials()]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED"]


@pytest.mark.slow
def test_two_workers_share_the_study(write_sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = write_sweep(trials=4, workers=2, eval_every_steps=4)
    code = main(["sweep", path])
    logs = "\n".join(each.read_text() for each in (tmp_path / "sweep").glob("worker-*.log"))
    assert code == 0, logs
    assert len(list((tmp_path / "sweep").glob("worker-*.log"))) == 2
    assert count_trials(open_study(load_sweep(path)), "") in (4, 5)  # both may start the last one
    assert (tmp_path / "sweep" / "best.yaml").is_file()


def test_a_killed_workers_trial_does_not_count_and_one_that_failed_does(write_sweep):
    study = open_study(load_sweep(write_sweep()))
    study.ask().set_user_attr("session", "gone")
    failed = study.ask()
    failed.set_user_attr("error", "diverged")
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    study.tell(study.ask(), 1.0)
    assert count_trials(study, "") == 2
    assert count_trials(study, "gone") == 3


def test_the_dashboard_opens_the_storage(write_sweep):
    dashboard = pytest.importorskip("optuna_dashboard")
    config = load_sweep(write_sweep())
    study = open_study(config)
    study.tell(study.ask(), 1.0)
    environment = {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(environment)
    status = []
    body = dashboard.wsgi(config.storage)(environment, lambda code, *_: status.append(code))
    shown = json.loads(b"".join(body))
    assert status[0].startswith("200")
    assert "test" in json.dumps(shown)


def test_the_average_is_judged_and_the_weights_come_back(make_config):
    trainer = make_trainer(make_config(run={"max_steps": 3, "learning_rate": 1e-2}))
    trainer.train()
    trainer._denoiser().train()
    weight = next(trainer._denoiser().parameters())
    before = weight.detach().clone()
    average = next(iter(trainer.masters.average_of(trainer._denoiser()).values()))
    with averaged_weights(trainer):
        trainer._denoiser().eval()
        assert weight.equal(average)
    assert weight.equal(before)
    assert not before.equal(average)
    assert trainer._denoiser().training


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"run.learning_rat": {"choices": [1]}}}, r"unknown key run\.learning_rat"),
        ({"space": {"rate": {"choices": [1]}}}, "'rate' must be named section.key"),
        ({"space": {}}, "space must name at least one section.key"),
        ({"space": None}, "space must name at least one section.key"),
        ({"space": {"run.batch_size": {"choices": []}}}, "must have at least one of choices"),
        (
            {"space": {"run.batch_size": {"choices": ["x"]}}},
            "run.batch_size must be a whole number, got 'x'",
        ),
        ({"space": {"run.batch_size": {"low": 0, "high": 4}}}, "run.batch_size must be in 1.."),
        ({"space": {"run.beta2": {"low": 0.9}}}, "must be a mapping of low and high"),
        ({"space": {"run.beta2": {"low": 0.9, "high": 0.1}}}, "low <= high"),
        ({"space": {"run.beta2": {"low": 0, "high": 1, "log": True}}}, "0 < low with log"),
        ({"space": {"run.beta2": 3}}, "must be a mapping of low and high"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"trials": "many"}, "trials must be a whole number, got 'many'"),
        ({"eval_files": []}, "eval_files must name at least one held-out file"),
        ({"base": None}, "must name a training configuration, got None"),
        ({"base": "no.yaml"}, r"no\.yaml' does not exist"),
        ({"set": {"run.steps": 3}}, r"unknown key run\.steps"),
        ({"storage": "nonsense"}, "storage nonsense cannot be opened"),
        ({"storage": "sqlite:////proc/nowhere/study.db"}, "nowhere/study.db cannot be opened"),
        ({"storage": "postgresql://localhost:1/none"}, "localhost:1/none cannot be opened"),
    ],
)
def test_a_sweep_that_cannot_be_honoured_is_refused(write_sweep, tmp_path, changes, words, capsys):
    assert main(["sweep", write_sweep(**changes)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(error)
    assert not (tmp_path / "sweep").exists()


def test_values_that_fail_in_every_trial_are_told(write_sweep, capsys):
    # Each value is good by itself; together the heads do not divide the width.
    space = {"model.num_attention_heads": {"choices": [4]}, "model.hidden_size": {"choices": [20]}}
    assert main(["sweep", write_sweep(space=space, trials=1)]) in (1, 2)
    assert "hidden_size must be a multiple of twice" in capsys.readouterr().err


def test_the_sweeps_own_options_and_those_of_the_base_are_told_apart(write_sweep):
    config = load_sweep(write_sweep(), ["--workers", "3", "--batch_size=2", "--study", "other"])
    assert (config.workers, config.study, config.base.run.batch_size) == (3, "other", 2)
    assert config.space["run.learning_rate"] == Range(low=1e-4, high=1e-2, log=True)
    with pytest.raises(ConfigError, match="unknown option --speed"):
        load_sweep(write_sweep(), ["--speed", "9"])


def test_a_held_out_file_that_is_missing_is_refused_before_a_trial(write_sweep, tmp_path, capsys):
    assert main(["sweep", write_sweep(eval_files=["nosuch"])]) == 2
    assert capsys.readouterr().err.startswith("no file nosuch.jsonl")
    assert not (tmp_path / "study").exists()


def test_the_command_line_comes_after_what_the_file_sets(write_sweep):
    path = write_sweep(set={"run.max_steps": 6, "run.batch_size": 2})
    run = load_sweep(path, ["--max_steps", "8"]).base.run
    assert (run.max_steps, run.batch_size) == (8, 2)
    assert load_sweep(path, ["--eval_files", "[a, b]"]).eval_files == ("a", "b")
    assert load_sweep(path, ["--eval-files=a"]).eval_files == ("a",)


def test_the_shipped_sweep_is_the_originals_search():
    path = Path("configs/sweep/noise_and_rates.yaml")
    config = load_sweep(path, ["--data_dir", "d", "--tokenizer", "t"])
    assert config.space == {
        "run.learning_rate": Range(low=1e-5, high=5e-3, log=True),
        "diffusion.num_diffusion_steps": (25, 50, 100),
        "diffusion.corruption_prob": Range(low=0.1, high=0.3),
        "run.gradient_accumulation_steps": (1, 2),
    }
    assert with_values(config.base, {"run.seed": 3}).run.seed == 3
