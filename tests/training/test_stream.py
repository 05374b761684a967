"""Rows that are read while a run goes on: the same for any number of workers and after a resume."""

import shutil
from itertools import islice

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from diffusiongpt.training.__main__ import main
from diffusiongpt.training.checkpoints import last_checkpoint
from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.config_file import to_mapping
from diffusiongpt.training.data import Row, pack_pieces
from diffusiongpt.training.pieces import load_store
from diffusiongpt.training.preview import report_cost, show_batch
from diffusiongpt.training.run import make_trainer
from diffusiongpt.training.stream import RowStream, draw_pieces, shuffle

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture
def make_streamed(make_config):
    def build(stage="pretrain", data=None, **sections):
        streamed = {"streaming": True, "shuffle_buffer_size": 4, **(data or {})}
        return make_config(stage, data=streamed, **sections)

    return build


def batches_of(config, count):
    loader = make_trainer(config).get_train_dataloader()
    return [{key: value.tolist() for key, value in b.items()} for b in islice(loader, count)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(make_streamed):
    alone, two, three = (
        batches_of(make_streamed(run={"dataloader_workers": count}), 7) for count in (0, 2, 3)
    )
    assert alone == two == three
    assert [row for batch in alone for row in batch["row"]] == list(range(28))


def test_one_source_gives_its_pieces_in_order_and_again(make_streamed, tokenizer):
    config = make_streamed(data={"shuffle_buffer_size": 1})
    store = load_store("texts", config.data, tokenizer, "pretrain")
    pieces = [store[index] for index in range(len(store))]
    whole = pack_pieces(pieces * 3, config.data, "pretrain", "block", 4, tokenizer, 0)
    streamed = RowStream(config, tokenizer).rows()
    for ours, expected in zip(streamed, list(whole)[:-1], strict=False):
        assert all(np.array_equal(one, other) for one, other in zip(ours, expected, strict=True))


def test_sources_are_drawn_by_their_weights_and_begin_again(make_streamed, tokenizer):
    def draw(mix, count):
        pieces = draw_pieces(make_streamed("sft", data={"mix": mix}), tokenizer)
        return [tuple(piece.ids.tolist()) for piece in islice(pieces, count)]

    known = set(draw({"chats/talk": 1.0}, 500))
    drawn = draw({"chats/chat": 3.0, "chats/talk": 1.0}, 2000)
    share = sum(piece in known for piece in drawn) / len(drawn)
    assert share == pytest.approx(0.25, abs=0.04)  # four standard errors


def test_a_buffer_changes_the_order_and_loses_nothing():
    rows = [Row(np.asarray([i]), np.asarray([1]), np.asarray([True])) for i in range(200)]
    order = [int(row.tokens[0]) for row in shuffle(rows, 32, seed=1)]
    assert sorted(order) == list(range(200))
    assert order != sorted(order)
    assert order == [int(row.tokens[0]) for row in shuffle(rows, 32, seed=1)]
    assert order != [int(row.tokens[0]) for row in shuffle(rows, 32, seed=2)]
    assert all(value <= place + 32 for place, value in enumerate(order))  # none is seen too early
    assert [int(row.tokens[0]) for row in shuffle(rows, 1, seed=1)] == list(range(200))


def test_a_resumed_run_reads_on_where_it_stopped(make_streamed, tmp_path):
    config = make_streamed(run={"max_steps": 5, "save_steps": 2})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(to_mapping(config)))
    assert main(["train", str(path)]) == 0
    run = tmp_path / "run"
    whole = load_file(run / "final" / "model.safetensors")
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoint-5")
    assert last_checkpoint(run) == str(run / "checkpoint-4")
    assert main(["train", str(path)]) == 0
    again = load_file(run / "final" / "model.safetensors")
    assert whole.keys() == again.keys()
    assert all(weight.equal(again[name]) for name, weight in whole.items())


def test_a_stream_is_explained_and_its_cost_has_no_passes(make_streamed):
    lines = list(report_cost(make_streamed()))
    assert "data: a stream of rows of 32 tokens" in lines
    assert not any("passes" in line for line in lines)
    rows = "4 rows of 32 positions"
    assert next(show_batch(make_streamed(), 0)) == f"step 0, {rows}: 0, 1, 2, 3 of the data"
    assert next(show_batch(make_streamed(), 2)) == f"step 2, {rows}: 8, 9, 10, 11 of the data"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"mix": {}}, r"so the mix must name something, .* got 0 names, 0 and 0"),
        ({"generated_chats": 5}, r"generated_chats and data.story_requests be 0; got 1 names, 5"),
        ({"shuffle_buffer_size": 0}, r"data.shuffle_buffer_size must be in 1..1048576, got 0"),
    ],
)
def test_what_a_stream_cannot_read_is_refused(make_streamed, data, words):
    with pytest.raises(ConfigError, match=words):
        make_streamed(data=data)


def test_a_source_without_a_text_is_refused(make_streamed, tokenizer, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    config = make_streamed(data={"mix": {"none": 1.0}, "data_dir": str(tmp_path)})
    with pytest.raises(
        ConfigError, match=r"data.mix.none has no text that fits, and a stream of it"
    ):
        RowStream(config, tokenizer)


def test_chats_whose_prompts_fill_the_row_are_refused(make_streamed, tokenizer):
    config = make_streamed("sft", data={"max_seq_length": 4})
    with pytest.raises(ConfigError, match=r"data.mix.chats has no text that fits"):
        RowStream(config, tokenizer)
