"""lm-evaluation-harness asks, a folder answers: pairs, long texts, answers, whole tasks."""

import json
import sys

import pytest

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.config_file import from_mapping
from diffusiongpt.training.generation import load_engine
from diffusiongpt.training.harness import (
    Scorer,
    generation_settings,
    register,
    rolling_windows,
    split_pair,
)
from diffusiongpt.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_dir):
    """A model that knows one text by heart."""
    where = tmp_path_factory.mktemp("heart")
    lines = [json.dumps({"text": "the cat ran home. the dog saw a ball."})] * 40
    (where / "texts.jsonl").write_text("\n".join(lines))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "model": {**shape, "intermediate_size": 48, "local_attention": 16},
        "data": {
            "data_dir": str(where),
            "tokenizer": str(tokenizer_dir),
            "cache_dir": str(where),
            "max_seq_length": 32,
            "mix": {"texts": 1.0},
        },
        "diffusion": {"block_length": 4},
        "run": {
            "output_dir": str(where / "run"),
            "batch_size": 8,
            "max_steps": 150,
            "learning_rate": 1e-2,
            "ema_decay": 0.9,
            "precision": "float32",
            "progress_bar": False,
        },
    }
    return train(from_mapping(config))


@pytest.fixture
def scorer(folder, tokenizer):
    return Scorer(load_engine(folder), tokenizer, draws=8, max_tokens=8)


def test_what_it_knows_is_likelier_than_what_it_does_not(scorer):
    (known, is_greedy), (other, other_is_greedy) = scorer.loglikelihoods(
        [("the cat ran", " home."), ("the cat ran", " ball.")]
    )
    assert 0 > known > other + 1
    assert (is_greedy, other_is_greedy) == (True, False)
    before, after = split_pair(scorer.encode, "the cat ran", " home.")
    score = scorer.engine.score([after], prompt=before, draws=8, seed=0)[0]
    assert known == -score.nats


def test_a_context_that_is_too_long_keeps_its_end(scorer):
    long = "happy friend " * 40 + "the cat ran"
    (nats, _), *_ = scorer.loglikelihoods([(long, " home.")])
    before, after = split_pair(scorer.encode, long, " home.")
    room = scorer.engine.info.context_length - max(len(after), 4)
    assert len(before) > room
    assert nats == -scorer.engine.score([after], prompt=before[-room:], draws=8)[0].nats
    with pytest.raises(ConfigError, match="does not fit into the model's context of 32"):
        scorer.loglikelihoods([("a", " ball" * 40)])


def test_every_token_of_a_long_text_is_scored_once():
    ids = list(range(70))
    for length in (4, 32, 70, 80):
        windows = rolling_windows(ids, length)
        assert [token for _, after in windows for token in after] == ids
        for before, after in windows:
            assert len(before) + len(after) <= length
            assert ids[after[0] - len(before) : after[0]] == before
    assert rolling_windows([1, 2], 8) == [([], [1, 2])]


def test_spaces_go_with_the_word_that_follows(tokenizer):
    scorer = Scorer(None, tokenizer)
    before, after = split_pair(scorer.encode, "the cat ", "ran")
    assert before == scorer.encode("the cat")
    assert tokenizer.decode(after) == " ran"
    before, after = split_pair(scorer.encode, "", "the")
    assert (before, tokenizer.decode(after)) == ([], "the")
    with pytest.raises(ConfigError, match="must have at least one token, got ''"):
        split_pair(scorer.encode, "the", "")


def test_generation_takes_the_harnesss_words(scorer):
    asks = [
        ("the cat ran home. the dog", {"until": [" a"], "max_gen_toks": 16}),
        ("the cat", {"until": ".", "max_gen_toks": 8, "do_sample": False, "temperature": 0.7}),
    ]
    assert scorer.generate(asks) == [" saw", " ran home"]
    assert dict(generation_settings({"temperature": 0.7}, 9)) == {
        "stop": (),
        "max_tokens": 9,
        "temperature": 0.7,
    }
    with pytest.raises(ConfigError, match="a task asks for 'num_beams', which cannot be honoured"):
        scorer.generate([("the", {"num_beams": 4})])


def test_without_the_harness_the_refusal_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["harness", str(folder), "any"]) == 2
    assert "pip install diffusiongpt[lm-eval]" in capsys.readouterr().err


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: {kind}
{rest}
"""


@pytest.fixture
def tasks(tmp_path):
    """Two tasks of the harness over a local file: choose the next word, or write it."""
    data = tmp_path / "questions.jsonl"
    data.write_text(
        json.dumps({"start": "the cat ran", "choices": ["home", "ball"], "answer": 0}) + "\n"
    )
    choose = (
        "doc_to_text: '{{start}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: answer\n"
        "metric_list: [{metric: acc}]"
    )
    write = (
        "doc_to_text: '{{start}}'\ndoc_to_target: ' {{choices[0]}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]"
    )
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, kind, rest in (
        ("choose_word", "multiple_choice", choose),
        ("write_word", "generate_until", write),
    ):
        text = TASK.format(name=name, data=data, kind=kind, rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    return str(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_harness_runs_tasks_on_a_folder(folder, tasks, monkeypatch, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    arguments = ["harness", str(folder), "--include_path", tasks, "--draws", "4"]
    assert main([*arguments, "choose_word", "write_word"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "_word" in line]
    assert {(row[1].strip(), row[7].strip()) for row in rows} == {
        ("choose_word", "1"),
        ("write_word", "1"),
    }
    assert main([*arguments, "no_such_task"]) == 2
    assert "the harness has no task 'no_such_task'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_the_model_class_is_one_of_the_harnesss(folder):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    model_class = register()
    assert get_model("diffusiongpt") is model_class
    model = model_class(str(folder), draws="4")
    pair = Instance("loglikelihood", {}, ("the cat ran", " home."), 0)
    text = Instance("loglikelihood_rolling", {}, ("the cat ran home.",), 0)
    ask = Instance("generate_until", {}, ("the cat", {"until": ["."], "max_gen_toks": 8}), 0)
    assert model.loglikelihood([pair]) == model.scorer.loglikelihoods([pair.args])
    assert model.loglikelihood_rolling([text])[0] < 0
    assert model.generate_until([ask]) == [" ran home"]
    history = [{"role": "user", "content": "hi"}]
    assert model.apply_chat_template(history).startswith("<|im_start|>user\nhi<|im_end|>")
