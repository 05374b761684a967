"""Where records come from: files, hub datasets, and task files that describe a dataset.

A record is `{"text": ...}` or `{"messages": [{"role", "content"}, ...]}`, with a `source` at times.

A name in `data.mix` is one of
    stories                        stories.jsonl, .jsonl.xz, .parquet or .txt in data_dir
    stories/gutenberg              only its rows whose `source` starts with that word
    hub:owner/name[:config]@split  a dataset of the hub (or a folder), streamed
    tasks/chat.yaml                a task file: see `TaskFile`
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.config_file import read_yaml
from diffusiongpt.training.records import Record, checked, shown
from diffusiongpt.training.tokenizer import END_OF_TEXT

SUFFIXES = ("", ".jsonl", ".jsonl.xz", ".parquet", ".txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """What a task file says of a dataset.

    Attributes:
        dataset: a hub id, or a file or folder. config, split: of a hub dataset or folder.
        text: column of texts. messages: column of chats; one of the two.
        role, content: keys of a message. roles: what the dataset's roles mean, as
            `{human: user, gpt: assistant}`.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    text: str | None = None
    messages: str | None = None
    role: str = "role"
    content: str = "content"
    roles: Mapping[str, str] = field(default_factory=dict)


def read_task_file(path: Path) -> TaskFile:
    """A task file; unknown keys and nonsense are refused by name."""
    raw = read_yaml(path)
    known = {each.name for each in dataclasses.fields(TaskFile)}
    if not isinstance(raw, dict) or "dataset" not in raw:
        raise ConfigError(f"the task file {path} must be a mapping with the key dataset")
    for key in raw:
        if key not in known:
            accepted = ", ".join(sorted(known))
            raise ConfigError(f"{path} has the unknown key {key!r}; accepted are {accepted}")
        kind, words = (Mapping, "a mapping") if key == "roles" else (str, "a text")
        if raw[key] is not None and not isinstance(raw[key], kind):
            raise ConfigError(f"{key} in {path} must be {words}, got {shown(raw[key])}")
    task = TaskFile(**{key: value for key, value in raw.items() if value is not None})
    if (task.text is None) == (task.messages is None):
        raise ConfigError(f"{path} must name one column: text or messages")
    return task


def open_records(name: str, data_dir: str) -> Iterator[Record]:
    """The records that a name in `data.mix` stands for, each of them checked.

    Raises:
        ConfigError: a source that cannot be read, or a record that is none, by its number.
        FileNotFoundError: no such file.
    """
    for number, record in enumerate(_records_of(name, data_dir), start=1):
        yield checked(record, f"record {number} of {name}")


def check_readable(names: Iterable[str], data_dir: str) -> None:
    """Refuse at once what would be missed when the training is over.

    Raises:
        ConfigError, FileNotFoundError: a name that cannot be read, or has no record.
    """
    for name in names:
        if next(open_records(name, data_dir), None) is None:
            raise ConfigError(f"{name} has no record")


def _records_of(name: str, data_dir: str) -> Iterator[Record]:
    if name.endswith((".yaml", ".yml")):
        yield from _task_records(read_task_file(_find_task(data_dir, name)), data_dir)
        return
    if name.startswith("hub:"):
        yield from _hub_records(*_parse_hub(name))
        return
    file, _, source = name.partition("/")
    for record in read_records(find_file(data_dir, file)):
        if not source or str(record.get("source", "")).split(":")[0] == source:
            yield record


def content_key(name: str, data_dir: str) -> str:
    """What the cache of tokenised records is keyed by; a hub dataset is known by name alone."""
    if name.endswith((".yaml", ".yml")):
        path = _find_task(data_dir, name)
        inner = Path(read_task_file(path).dataset)
        found = inner if inner.is_file() else Path(data_dir) / inner
        return path.read_text() + (_digest(found) if found.is_file() else "")
    if name.startswith("hub:"):
        return name
    file, _, source = name.partition("/")
    return f"{_digest(find_file(data_dir, file))}\n{source}"


def find_file(data_dir: str, name: str) -> Path:
    """`name` in the data folder, with one of the suffixes that can be read."""
    for suffix in SUFFIXES:
        path = Path(data_dir) / f"{name}{suffix}"
        if path.is_file():
            return path
    endings = ", ".join(f"{name}{suffix}" for suffix in SUFFIXES[1:])
    raise FileNotFoundError(f"no file {endings} in data_dir {data_dir!r}")


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, one after another; one that is damaged is refused by its name."""
    try:
        yield from _read_records(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8, and is not: {error.reason}") from error
    except (lzma.LZMAError, EOFError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error


def _read_records(path: Path) -> Iterator[Record]:
    if path.suffix == ".txt":
        yield from _text_records(path)
    elif path.suffix == ".parquet":
        yield from _parquet_records(path)
    else:
        yield from _json_records(path)


def normalise(row: Mapping[str, Any], task: TaskFile, where: str) -> Record:
    """A row of a dataset as a record, by what the task file says of its columns."""
    column = task.text or task.messages or ""
    if column not in row:
        raise ConfigError(f"{where} has no column {column!r}; it has {', '.join(sorted(row))}")
    if task.text is not None:
        return {"text": row[column]}
    return {"messages": [_message(each, task, where) for each in row[column] or ()]}


def _message(message: Any, task: TaskFile, where: str) -> dict[str, Any]:
    for key in (task.role, task.content):
        if not isinstance(message, Mapping) or key not in message:
            raise ConfigError(f"{where} has a message without {key!r}: {shown(message)}")
    role = str(message[task.role])
    return {"role": task.roles.get(role, role), "content": message[task.content]}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _find_task(data_dir: str, name: str) -> Path:
    for path in (Path(name), Path(data_dir) / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"there is no task file {name!r}, neither here nor in {data_dir!r}")


def _task_records(task: TaskFile, data_dir: str) -> Iterator[Record]:
    for path in (Path(task.dataset), Path(data_dir) / task.dataset):
        if path.is_file():
            rows = read_records(path)
            break
    else:
        rows = _hub_rows(task.dataset, task.config, task.split)
    for row in rows:
        yield normalise(row, task, task.dataset)


def _parse_hub(name: str) -> tuple[str, str | None, str]:
    """`hub:owner/name:config@split` to its three parts; the split is train by default."""
    rest, _, split = name.removeprefix("hub:").partition("@")
    dataset, _, config = rest.partition(":")
    if not dataset:
        raise ConfigError(f"a hub dataset is hub:owner/name[:config]@split, got {name!r}")
    return dataset, config or None, split or "train"


def _hub_records(dataset: str, config: str | None, split: str) -> Iterator[Record]:
    for row in _hub_rows(dataset, config, split):
        if "text" not in row and "messages" not in row:
            raise ConfigError(
                f"{dataset} has no column text or messages; it has {', '.join(sorted(row))}: "
                "a task file can name the column"
            )
        yield row


def _hub_rows(dataset: str, config: str | None, split: str) -> Iterator[Record]:
    """The rows of a dataset of the hub or of a folder, streamed."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"the dataset {dataset!r} needs datasets: pip install diffusiongpt[data]"
        ) from error
    try:
        yield from datasets.load_dataset(dataset, config, split=split, streaming=True)
    except (FileNotFoundError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the dataset {dataset!r} cannot be read: {reason}") from error


def _json_records(path: Path) -> Iterator[Record]:
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"line {number} of {path} is not JSON: {error.msg}") from error
            if not isinstance(record, dict):
                raise ConfigError(f"line {number} of {path} must be an object, got {shown(record)}")
            yield record


def _text_records(path: Path) -> Iterator[Record]:
    """Documents between `<|endoftext|>`; a file without one is a document."""
    lines: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            *ended, rest = line.split(END_OF_TEXT)
            for part in ended:
                lines.append(part)
                yield from _document(lines)
                lines = []
            lines.append(rest)
    yield from _document(lines)


def _document(lines: list[str]) -> Iterator[Record]:
    text = "".join(lines).strip()
    if text:
        yield {"text": text}


def _parquet_records(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(f"{path} needs pyarrow: pip install diffusiongpt[data]") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from error
