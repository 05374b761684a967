"""Data, tokenizers and models that do not fit are refused in a sentence, before a step is taken."""

import json

import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.config_file import to_mapping
from diffusiongpt.training.run import load_rows, make_tokenizer, train

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")
USER = {"role": "user", "content": "the cat"}
ANSWER = {"role": "assistant", "content": "ran home"}


@pytest.fixture
def refused(make_config, tmp_path, capsys):
    """The one sentence with which `train` or `sft` refuses records or a configuration."""

    def run(records, stage="pretrain", **sections):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "odd.jsonl").write_text(lines)
        data = {"data_dir": str(tmp_path), "mix": {"odd": 1.0}, **sections.pop("data", {})}
        config = make_config(stage=stage, data=data, **sections)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(to_mapping(config)))
        capsys.readouterr()
        code = main(["sft" if stage == "sft" else "train", str(path)])
        error = capsys.readouterr().err.strip().splitlines()
        assert code == 2, error
        assert not list((tmp_path / "run").glob("checkpoint-*"))
        return error[-1]

    return run


def test_data_without_a_row_is_refused(refused):
    nothing = "there is no row to train on"
    assert nothing in refused([])
    assert nothing in refused([{"text": ""}])
    assert nothing in refused([{"messages": [USER]}], "sft")
    assert nothing in refused([{"messages": [ANSWER]}], "sft")
    assert nothing in refused([{"messages": [USER, {**ANSWER, "content": " "}]}], "sft")
    long = {**USER, "content": "the cat " * 200}
    assert nothing in refused([{"messages": [long, ANSWER]}], "sft")


def test_fewer_rows_than_a_batch_are_refused_with_both_numbers(refused):
    said = refused([{"text": "the cat ran home."}])
    assert "1 row, fewer than the 4 of a step" in said
    accumulated = {"batch_size": 2, "gradient_accumulation_steps": 3}
    said = refused([{"text": "the cat ran home. " * 8}], run=accumulated)
    assert "fewer than the 6 of a step" in said


def test_one_line_is_enough_for_a_batch_of_one(make_config, tmp_path):
    (tmp_path / "odd.jsonl").write_text(json.dumps({"text": "the cat ran home."}) + "\n")
    data = {"data_dir": str(tmp_path), "mix": {"odd": 1.0}}
    folder = train(make_config(data=data, run={"batch_size": 1, "max_steps": 3}))
    assert (folder / "model.safetensors").is_file()


def test_a_text_longer_than_the_context_is_cut_into_rows_and_loses_nothing(
    make_config, tmp_path, tokenizer
):
    text = "the cat dog saw ran home to a big red ball " * 20
    (tmp_path / "odd.jsonl").write_text(json.dumps({"text": text}) + "\n")
    rows = load_rows(make_config(data={"data_dir": str(tmp_path), "mix": {"odd": 1.0}}), tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(rows) == -(-(len(ids) + 1) // 32)
    kept = [i for row in range(len(rows)) for i in rows[row]["tokens"][rows[row]["maskable"]]]
    assert sorted(int(i) for i in kept if i in ids) == sorted(ids)


def test_answers_that_do_not_fit_are_counted(make_config, tmp_path, tokenizer, caplog):
    long = "the cat ran home " * 40
    chats = [
        [USER, ANSWER],
        [{**USER, "content": long}, ANSWER],
        [USER, {**ANSWER, "content": long}],
    ]
    lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    (tmp_path / "odd.jsonl").write_text(lines)
    config = make_config(stage="sft", data={"data_dir": str(tmp_path), "mix": {"odd": 1.0}})
    with caplog.at_level("INFO"):
        load_rows(config, tokenizer)
    assert "of 3 answers 1 are left out" in caplog.text
    assert "and 1 are cut" in caplog.text


def test_a_vocabulary_that_the_texts_cannot_fill_is_told(tmp_path, caplog):
    (tmp_path / "few.jsonl").write_text(json.dumps({"text": "the cat"}) + "\n")
    with caplog.at_level("INFO"):
        make_tokenizer(["few"], str(tmp_path), str(tmp_path / "out"), 4096, 64)
    assert "tokens and not 4096: the texts have no more to merge" in caplog.text


def test_a_tokenizer_without_the_special_tokens_is_refused(refused, tokenizer_dir, tmp_path):
    plain = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] != "<|mask|>"]
    plain["model"]["vocab"] = {
        ("[was mask]" if token == "<|mask|>" else token): index
        for token, index in plain["model"]["vocab"].items()
    }
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "plain.json")).save_pretrained(
        tmp_path / "plain"
    )
    said = refused([{"text": "the cat"}], data={"tokenizer": str(tmp_path / "plain")})
    assert "<|mask|>" in said


def test_a_vocabulary_that_the_model_does_not_have_is_refused(
    refused, make_config, tmp_path, tokenizer_dir
):
    folder = train(make_config(run={"max_steps": 1, "output_dir": str(tmp_path / "first")}))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.add_tokens([f"word{index}" for index in range(50)])
    tokenizer.save_pretrained(tmp_path / "larger")
    said = refused(
        [{"text": "the cat"}],
        data={"tokenizer": str(tmp_path / "larger")},
        model={"init_from": str(folder)},
        run={"batch_size": 1},
    )
    assert "has 300 tokens, the tokenizer has 350" in said
