"""Records from files, folders and task files; what cannot be read is refused in a sentence."""

import copy
import errno
import json
import lzma

import pytest

from diffusiongpt.training.config import ConfigError, DataConfig
from diffusiongpt.training.pieces import load_store, render_pairs
from diffusiongpt.training.sources import content_key, open_records, read_task_file

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


def write(path, records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records))


def test_texts_end_at_the_end_of_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo<|endoftext|>three\n<|endoftext|>\n")
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    assert list(open_records("a", str(tmp_path))) == [{"text": "one\n\ntwo"}, {"text": "three"}]
    assert list(open_records("b", str(tmp_path))) == [{"text": "one\n\ntwo"}]


def test_parquet_and_folders_give_the_rows_of_the_same_json_lines(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    import pyarrow

    records = [{"text": f"text {index}"} for index in range(5)]
    write(tmp_path / "rows.jsonl", records)
    folder = tmp_path / "folder"
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / "train.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "table.parquet")
    for name in ("rows", "table", f"hub:{folder}", f"hub:{folder}@train"):
        assert list(open_records(name, str(tmp_path))) == records, name


def test_a_task_file_says_what_the_columns_mean(tmp_path):
    write(tmp_path / "chats.jsonl", [{"conversations": TURNS}])
    (tmp_path / "task.yaml").write_text(
        "dataset: chats.jsonl\nmessages: conversations\nrole: from\ncontent: value\n"
        "roles: {human: user, gpt: assistant}\n"
    )
    expected = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert list(open_records("task.yaml", str(tmp_path))) == [{"messages": expected}]
    before = content_key("task.yaml", str(tmp_path))
    write(tmp_path / "chats.jsonl", [{"conversations": TURNS * 2}])
    assert content_key("task.yaml", str(tmp_path)) != before


def test_every_shipped_task_file_is_accepted():
    from pathlib import Path

    paths = sorted(Path("configs/tasks").glob("*.yaml"))
    assert len(paths) == 4
    assert {read_task_file(path).messages for path in paths} == {"messages", "conversations"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "x"}\nnonsense\n', "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", "3\n", "line 1 of .* must be an object, got 3"),
        ("a.yaml", "split: train\n", "must be a mapping with the key dataset"),
        ("a.yaml", "dataset: x\ntext: t\ncolour: red\n", "unknown key 'colour'; accepted"),
        ("a.yaml", "dataset: x\n", "must name one column: text or messages"),
        ("a.yaml", "dataset: b.jsonl\ntext: body\n", "no column 'body'; it has story"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, words):
    write(tmp_path / "b.jsonl", [{"story": "x"}])
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        list(open_records(name, str(tmp_path)))


LINE = b'{"text": "the cat"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", LINE + b'{"text": "caf\xe9"}', "a.jsonl must be UTF-8, and is not"),
        ("a.txt", b"caf\xe9", "a.txt must be UTF-8, and is not"),
        ("a.jsonl.xz", b"nonsense", "a.jsonl.xz is damaged"),
        ("a.jsonl.xz", lzma.compress(LINE * 9)[:-9], "a.jsonl.xz is damaged"),
        ("a.parquet", b"nonsense", "a.parquet is damaged"),
        ("a.jsonl", LINE + b'{"title": "x"}', "record 2 of a has neither .*; it has title"),
        ("a.jsonl", LINE + b'{"text": 5}', "record 2 of a: text must be a text or null, got 5"),
        ("a.jsonl", b'{"text": "a \\ud800"}', "text must be Unicode, got .*in position 2"),
        ("a.jsonl", b'{"messages": "hi"}', "messages must be a list of objects, got 'hi'"),
        ("a.jsonl", b'{"messages": [{"content": "hi"}]}', "must be objects with a role"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": [1]}]}', "content must be a text"),
        ("a.yaml", b"dataset: b.jsonl\nmessages: m\nroles: [x]\n", "roles in .* a mapping, got"),
        ("a.yaml", b"dataset: b.jsonl\nmessages: m\n", "m has a message without 'role': {}"),
        ("a.yaml", b"dataset: caf\xe9", "a.yaml must be UTF-8"),
    ],
)
def test_what_is_damaged_is_refused_by_name(tmp_path, name, content, words):
    write(tmp_path / "b.jsonl", [{"m": [{}]}])
    (tmp_path / name).write_bytes(content)
    asked = name if name.endswith("yaml") else "a"
    with pytest.raises(ConfigError, match=words.replace("m has", "b.jsonl has")):
        list(open_records(asked, str(tmp_path)))


def test_null_is_an_empty_text_and_is_left_out(tmp_path, tokenizer):
    write(tmp_path / "a.jsonl", [{"text": "cat"}, {"text": None}, {"text": ""}])
    call = [{"role": "user", "content": None}, {"role": "assistant", "content": "cat"}]
    silent = [call[0], {"role": "assistant", "content": None}]
    records = [{"messages": call}, {"messages": silent}, {"messages": None}, {"messages": []}]
    write(tmp_path / "chats.jsonl", records)
    data = DataConfig(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert len(load_store("a", data, tokenizer, "pretrain")) == 1
    assert len(load_store("chats", data, tokenizer, "sft")) == 1


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINE)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthe cat")
    for name in "ab":
        assert list(open_records(name, str(tmp_path))) == [{"text": "the cat"}]


def test_a_template_that_refuses_a_conversation_is_told(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    chat = {
        "messages": [{"role": "wizard", "content": "hi"}, {"role": "assistant", "content": "x"}]
    }
    with pytest.raises(ConfigError, match="cannot render the roles wizard: roles must alternate"):
        list(render_pairs([chat], strict))


def test_a_damaged_cache_is_made_anew(tmp_path, tokenizer):
    write(tmp_path / "a.jsonl", [{"text": "the cat ran home"}])
    data = DataConfig(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    ids = load_store("a", data, tokenizer, "pretrain").ids
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    assert (load_store("a", data, tokenizer, "pretrain").ids == ids).all()


def test_a_cache_that_cannot_be_written_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    write(tmp_path / "a.jsonl", [{"text": "the cat ran home"}])
    data = DataConfig(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))

    def fill(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("numpy.savez_compressed", fill)
    with pytest.raises(OSError, match="No space left"):
        load_store("a", data, tokenizer, "pretrain")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["contents.json"]


def test_records_without_what_the_stage_needs_are_refused(tmp_path, tokenizer):
    write(tmp_path / "b.jsonl", [{"story": "x"}])
    data = DataConfig(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="neither text nor messages; it has story"):
        load_store("b", data, tokenizer, "pretrain")
    write(tmp_path / "d.jsonl", [{"text": "x"}])
    with pytest.raises(ConfigError, match="sft needs records with messages, got one with text"):
        load_store("d", data, tokenizer, "sft")
    with pytest.raises(FileNotFoundError, match=r"no file c\.jsonl"):
        load_store("c", data, tokenizer, "pretrain")


def test_as_many_turns_are_taken_as_asked(tmp_path, tokenizer):
    turn = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "home"}]
    write(tmp_path / "chats.jsonl", [{"messages": turn * 5}])
    for count, expected in ((1, 1), (2, 2), (4, 4), (9, 5)):
        data = DataConfig(
            data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"), max_turns=count
        )
        store = load_store("chats", data, tokenizer, "sft")
        assert len(store) == expected
        assert len({store[index].fixed for index in range(len(store))}) == expected
