"""Records in, rows of token ids out: read, tokenise once, mix, pack. Knows no model.

A row is L positions: `tokens`, `segments` (0 is padding; segments do not see each other) and
`maskable` (what may be masked and is trained).
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

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from diffusiongpt.training.chats import generated_chats, story_requests
from diffusiongpt.training.config import ConfigError, DataConfig
from diffusiongpt.training.sources import content_key, find_file, open_records, read_records
from diffusiongpt.training.tokenizer import END_OF_TEXT, IM_END, special_ids

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
            prompt = tokenizer.apply_chat_template(
                messages[:turn], tokenize=False, add_generation_prompt=True
            )
            yield prompt, messages[turn]["content"].strip()


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of many texts, without special tokens added."""
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
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
            with np.load(path) as stored:
                return cls(stored["ids"].astype(np.int32), stored["ends"], stored["fixed"])
        store = cls.from_lists(make)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial.npz")  # processes may meet here
        small = np.uint16 if store.ids.max(initial=0) < 1 << 16 else np.int32
        np.savez_compressed(
            partial, ids=store.ids.astype(small), ends=store.ends, fixed=store.fixed
        )
        partial.rename(path)
        return store


def load_store(name: str, config: DataConfig, tokenizer: Any, stage: str) -> PieceStore:
    """The pieces of a name in `data.mix`, tokenised once."""
    vocabulary = tokenizer.backend_tokenizer.to_str()
    parts = [str(CACHE_VERSION), known_content(name, config), stage]
    parts += [str(config.max_documents), vocabulary]
    if config.max_turns != DataConfig().max_turns:
        parts.append(str(config.max_turns))
    records = open_records(name, config.data_dir)
    pieces = encode_records(records, tokenizer, stage, config.max_documents, config.max_turns)
    return PieceStore.cached("\n".join(parts), config.cache_dir, pieces)


def known_content(name: str, config: DataConfig) -> str:
    """The content of a name's records; of a cache that travelled without them, as it was there.

    Raises:
        FileNotFoundError: the records are not there, and the cache never saw them.
    """
    path = Path(config.cache_dir) / CONTENTS_FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
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
        return str(tokenizer.apply_chat_template(record["messages"], tokenize=False))
    raise ConfigError(f"a record has neither text nor messages; it has {', '.join(sorted(record))}")


def mixed_order(
    sizes: Mapping[str, int], weights: Mapping[str, float], seed: int
) -> list[tuple[str, int]]:
    """(name, index) of every piece of one pass: weight 2.5 is twice all and once a random half."""
    generator = np.random.default_rng(seed)
    order: list[tuple[str, int]] = []
    for name, size in sizes.items():
        whole, part = divmod(weights[name], 1.0)
        picked = list(range(size)) * int(whole)
        picked += sorted(generator.permutation(size)[: round(part * size)].tolist())
        order += [(name, index) for index in picked]
    return [order[int(i)] for i in generator.permutation(len(order))]


class RowBuilder:
    """Lays pieces one after another into rows of `length`, each starting at a block edge."""

    def __init__(self, length: int, block_length: int, pad_id: int, hidden_ids: set[int]) -> None:
        self.length, self.block_length, self.pad_id = length, block_length, pad_id
        self.hidden_ids = np.asarray(sorted(hidden_ids), dtype=np.int32)
        self.rows: list[tuple[Ids, npt.NDArray[np.int16], npt.NDArray[np.bool_]]] = []
        self._new_row()

    def _new_row(self) -> None:
        self._tokens = np.full(self.length, self.pad_id, dtype=np.int32)
        self._segments = np.zeros(self.length, dtype=np.int16)
        self._maskable = np.zeros(self.length, dtype=np.bool_)
        self._used = 0
        self._count = 0

    @property
    def room(self) -> int:
        """Positions left in the row that is being filled."""
        return self.length - self._used

    def close_row(self) -> None:
        """Finish the row that is being filled, if it holds anything."""
        if self._used:
            self.rows.append((self._tokens, self._segments, self._maskable))
            self._new_row()

    def add(self, ids: Ids, fixed: int) -> None:
        """Put a segment that fits into the row; the rest of its last block is padding."""
        if len(ids) > self.room:
            raise ValueError(f"a segment of {len(ids)} tokens does not fit into {self.room}")
        self._count += 1
        start, end = self._used, self._used + len(ids)
        self._tokens[start:end] = ids
        self._segments[start:end] = self._count
        self._maskable[start + fixed : end] = True
        self._maskable[start:end] &= ~np.isin(ids, self.hidden_ids)
        self._used = -(-end // self.block_length) * self.block_length
        if self._used >= self.length:
            self.close_row()


def to_block_edge(ids: Ids, ending: int, block_length: int) -> Ids:
    """`ids` and at least one `ending`, repeated up to the block edge (all of it is trained)."""
    count = block_length - len(ids) % block_length
    return np.concatenate([ids, np.full(count, ending, dtype=np.int32)])


def pack_texts(
    pieces: Iterable[Piece], builder: RowBuilder, end_of_text: int, smallest: int = 32
) -> None:
    """Cut texts into rows; a text that reaches its end gets its ending, a cut one does not."""
    for piece in pieces:
        ids = to_block_edge(piece.ids, end_of_text, builder.block_length)
        while len(ids):
            if builder.room < min(smallest, len(ids)):
                builder.close_row()
            placed = min(builder.room, len(ids))
            builder.add(ids[:placed], 0)
            ids = ids[placed:]
    builder.close_row()


def pack_answers(
    pieces: Iterable[Piece],
    builder: RowBuilder,
    ending: int,
    trailing: np.random.Generator | None = None,
    max_trailing: int = 1,
    smallest: int = 4,
) -> None:
    """One segment per answer: the prompt fixed, the answer and its ending trained.

    The ending is repeated to the block edge; without blocks (`trailing` given) a random number of
    times, so that no length is preferred. An answer that is cut off gets no ending, and a prompt
    that leaves no room for `smallest` answer tokens is left out.
    """
    for piece in pieces:
        if piece.fixed + smallest > builder.length:
            continue
        if trailing is None:
            ids = to_block_edge(piece.ids, ending, builder.block_length)
        else:
            count = int(trailing.integers(1, max_trailing + 1))
            ids = np.concatenate([piece.ids, np.full(count, ending, dtype=np.int32)])
        if len(piece.ids) >= builder.length:
            ids = piece.ids
        ids = ids[: builder.length]
        if len(ids) > builder.room:
            builder.close_row()
        builder.add(ids, piece.fixed)
    builder.close_row()


class RowDataset(Dataset[dict[str, torch.Tensor]]):
    """Packed rows in three arrays, in an order that depends on the seed alone.

    An item is a row's tensors, (L,) each, and its number in `row`, by which errors name it.
    """

    def __init__(self, builder: RowBuilder, seed: int = 0) -> None:
        if not builder.rows:
            raise ConfigError("there is no row to train on: the files gave no text that fits")
        order = np.random.default_rng(seed).permutation(len(builder.rows))
        self.tokens = np.stack([builder.rows[i][0] for i in order])  # (N, L)
        self.segments = np.stack([builder.rows[i][1] for i in order])
        self.maskable = np.stack([builder.rows[i][2] for i in order])
        builder.rows = []

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "tokens": torch.from_numpy(self.tokens[index].astype(np.int64)),
            "segments": torch.from_numpy(self.segments[index].astype(np.int64)),
            "maskable": torch.from_numpy(self.maskable[index]),
            "row": torch.tensor(index),
        }


def build_dataset(
    config: DataConfig, stage: str, objective: str, block_length: int, tokenizer: Any, seed: int
) -> RowDataset:
    """Everything a stage trains on: the mix of files, story requests and generated chats."""
    special = special_ids(tokenizer)
    hidden = {special[token] for token in special if token not in (END_OF_TEXT, IM_END)}
    stores = {name: load_store(name, config, tokenizer, stage) for name in config.mix}
    weights = dict(config.mix)
    if stage == "sft" and config.generated_chats:
        records = generated_chats(config.generated_chats, seed)
        stores["generated"] = PieceStore.from_lists(encode_records(records, tokenizer, stage))
        weights["generated"] = 1.0
    if stage == "sft" and config.story_requests:
        stores["stories"] = _story_store(config, tokenizer, seed)
        weights["stories"] = 1.0
    order = mixed_order({name: len(store) for name, store in stores.items()}, weights, seed)
    pieces = (stores[name][index] for name, index in order)
    builder = RowBuilder(config.max_seq_length, block_length, special["<|pad|>"], hidden)
    if stage == "pretrain":
        pack_texts(pieces, builder, special[END_OF_TEXT])
    else:
        trailing = None if objective == "block" else np.random.default_rng(seed)
        pack_answers(pieces, builder, special[IM_END], trailing, config.max_trailing_eos)
    return RowDataset(builder, seed)


def _story_store(config: DataConfig, tokenizer: Any, seed: int) -> PieceStore:
    source, count = "pretrain_simple_stories", int(config.story_requests)
    parts = [str(CACHE_VERSION), known_content(source, config), f"requests {count} {seed}"]
    parts.append(tokenizer.backend_tokenizer.to_str())

    def pieces() -> Iterator[tuple[Sequence[int], int]]:
        records = read_records(find_file(config.data_dir, source))
        yield from encode_records(story_requests(records, count, seed), tokenizer, "sft")

    return PieceStore.cached("\n".join(parts), config.cache_dir, pieces())
