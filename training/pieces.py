"""Records in, pieces of token ids out: a text, or a prompt and its answer, tokenised once.

Knows no model and no rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from diffusiongpt.training.chats import story_requests
from diffusiongpt.training.config import ConfigError, DataConfig
from diffusiongpt.training.sources import content_key, open_records

Ids = npt.NDArray[np.int32]
CACHE_VERSION = 2
CONTENTS_FILE = "contents.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """Token ids of which the first `fixed` are given and the rest is trained."""

    ids: Ids
    fixed: int = 0


def last_turns(
    messages: Sequence[Mapping[str, str]], generator: np.random.Generator, cap: int = 2
) -> list[int]:
    """Up to `cap` assistant turns of a conversation, by index, drawn without preference."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
    if len(turns) <= cap:
        return turns
    return sorted(int(i) for i in generator.choice(turns, size=cap, replace=False))


def render_pairs(
    records: Iterable[Mapping[str, Any]], tokenizer: Any, max_turns: int = 2
) -> Iterator[tuple[str, str]]:
    """(prompt, answer) of each assistant turn kept; the prompt is what the chat template says."""
    generator = np.random.default_rng(0)
    for record in records:
        if "messages" not in record:
            raise ConfigError(
                f"sft needs records with messages, got one with {', '.join(sorted(record))}"
            )
        messages = record["messages"]
        for turn in last_turns(messages, generator, max_turns):
            prompt = render_chat(tokenizer, messages[:turn], add_generation_prompt=True)
            yield prompt, messages[turn]["content"].strip()


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
) -> str:
    """What the tokenizer's chat template makes of messages.

    Raises:
        ConfigError: there is no template, or it refuses these roles in this order.
    """
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the tokenizer's chat template cannot render the roles {roles}: {reason}"
        ) from error
    return text


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of many texts, without special tokens added."""
    if not texts:
        return []
    # Not verbose: texts are longer than the context, and are cut into rows afterwards.
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return encoded


class PieceStore:
    """Tokenised pieces in two flat arrays, cached on disk by the content they come from."""

    def __init__(self, ids: Ids, ends: npt.NDArray[np.int64], fixed: Ids) -> None:
        self.ids, self.ends, self.fixed = ids, ends, fixed

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Piece:
        start = int(self.ends[index - 1]) if index else 0
        return Piece(self.ids[start : int(self.ends[index])], int(self.fixed[index]))

    @classmethod
    def from_lists(cls, pieces: Iterable[tuple[Sequence[int], int]]) -> PieceStore:
        """Collect (ids, number of fixed ids) pairs."""
        chunks: list[Ids] = []
        fixed: list[int] = []
        for ids, given in pieces:
            chunks.append(np.asarray(ids, dtype=np.int32))
            fixed.append(given)
        ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        flat = np.concatenate(chunks) if chunks else np.zeros(0, np.int32)
        return cls(flat, ends, np.asarray(fixed, dtype=np.int32))

    @classmethod
    def cached(
        cls, key: str, cache_dir: str, make: Iterable[tuple[Sequence[int], int]]
    ) -> PieceStore:
        """Read the pieces stored under `key`, or make and store them."""
        path = Path(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        if path.is_file():
            try:
                with path.open("rb") as file, np.load(file) as stored:
                    return cls(stored["ids"].astype(np.int32), stored["ends"], stored["fixed"])
            except (ValueError, KeyError, EOFError, BadZipFile, ZlibError) as error:
                logger.info("%s is damaged (%s) and is made anew", path, error)
        store = cls.from_lists(make)
        store._write(path)
        return store

    def _write(self, path: Path) -> None:
        """Store the pieces; what cannot be written to its end leaves nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial.npz")  # processes may meet here
        small = np.uint16 if self.ids.max(initial=0) < 1 << 16 else np.int32
        try:
            np.savez_compressed(
                partial, ids=self.ids.astype(small), ends=self.ends, fixed=self.fixed
            )
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)


def load_store(name: str, config: DataConfig, tokenizer: Any, stage: str) -> PieceStore:
    """The pieces of a name in `data.mix`, tokenised once."""
    vocabulary = tokenizer.backend_tokenizer.to_str()
    parts = [str(CACHE_VERSION), known_content(name, config), stage]
    parts += [str(config.max_documents), vocabulary]
    if config.max_turns != DataConfig().max_turns:
        parts.append(str(config.max_turns))
    pieces = read_pieces(name, config, tokenizer, stage)
    return PieceStore.cached("\n".join(parts), config.cache_dir, pieces)


def read_pieces(
    name: str, config: DataConfig, tokenizer: Any, stage: str
) -> Iterator[tuple[Sequence[int], int]]:
    """(ids, fixed) of each record of a name in `data.mix`, tokenised as they are read."""
    records = open_records(name, config.data_dir)
    yield from encode_records(records, tokenizer, stage, config.max_documents, config.max_turns)


def known_content(name: str, config: DataConfig) -> str:
    """The content of a name's records; of a cache that travelled without them, as it was there.

    Raises:
        FileNotFoundError: the records are not there, and the cache never saw them.
    """
    path = Path(config.cache_dir) / CONTENTS_FILE
    known = _contents(path)
    try:
        content = content_key(name, config.data_dir)
    except FileNotFoundError:
        if name not in known:
            raise
        logger.info("%s is not in %s: its tokens are those of the cache", name, config.data_dir)
        return str(known[name])
    if known.get(name) != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps({**known, name: content}), encoding="utf-8")
        partial.rename(path)
    return content


def _contents(path: Path) -> dict[str, str]:
    """What a cache says of its texts; nothing where there is none, or it is damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def encode_records(
    records: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    stage: str,
    limit: int | None = None,
    max_turns: int = 2,
) -> Iterator[tuple[Sequence[int], int]]:
    """(ids, fixed) of each record: a whole text, or a prompt and the answer that follows it."""
    batch: list[Mapping[str, Any]] = []
    for index, record in enumerate(records):
        if limit is not None and index >= limit:
            break
        batch.append(record)
        if len(batch) == 512:
            yield from _encode_batch(batch, tokenizer, stage, max_turns)
            batch = []
    yield from _encode_batch(batch, tokenizer, stage, max_turns)


def _encode_batch(
    batch: Sequence[Mapping[str, Any]], tokenizer: Any, stage: str, max_turns: int
) -> Iterator[tuple[Sequence[int], int]]:
    if stage == "sft":
        pairs = list(render_pairs(batch, tokenizer, max_turns))
        prompts = encode_texts(tokenizer, [prompt for prompt, _ in pairs])
        answers = encode_texts(tokenizer, [answer for _, answer in pairs])
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer:
                yield [*prompt, *answer], len(prompt)
        return
    for ids in encode_texts(tokenizer, [_text_of(record, tokenizer) for record in batch]):
        if ids:
            yield ids, 0


def _text_of(record: Mapping[str, Any], tokenizer: Any) -> str:
    if "text" in record:
        return str(record["text"])
    if "messages" in record:
        return render_chat(tokenizer, record["messages"])
    raise ConfigError(f"a record has neither text nor messages; it has {', '.join(sorted(record))}")


def story_store(config: DataConfig, tokenizer: Any, seed: int) -> PieceStore:
    """Requests for stories with the stories that answer them, tokenised once."""
    source, count = "pretrain_simple_stories", int(config.story_requests)
    parts = [str(CACHE_VERSION), known_content(source, config), f"requests {count} {seed}"]
    parts.append(tokenizer.backend_tokenizer.to_str())

    def pieces() -> Iterator[tuple[Sequence[int], int]]:
        records = open_records(source, config.data_dir)
        yield from encode_records(story_requests(records, count, seed), tokenizer, "sft")

    return PieceStore.cached("\n".join(parts), config.cache_dir, pieces())
