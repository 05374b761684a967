"""Pieces in, rows out: mixed in a random order, or streamed, and packed. Knows no model.

A row is L positions: `tokens`, `segments` (0 is padding; segments do not see each other) and
`maskable` (what may be masked and is trained).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from diffusiongpt.training.chats import generated_chats
from diffusiongpt.training.config import ConfigError, DataConfig
from diffusiongpt.training.pieces import (
    Ids,
    Piece,
    PieceStore,
    encode_records,
    load_store,
    story_store,
)
from diffusiongpt.training.tokenizer import END_OF_TEXT, IM_END, special_ids

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One packed row, three arrays of (L,)."""

    tokens: Ids
    segments: npt.NDArray[np.int16]
    maskable: npt.NDArray[np.bool_]

    def item(self, number: int) -> dict[str, torch.Tensor]:
        """The row as tensors for a batch, and its number, by which errors name it."""
        return {
            "tokens": torch.from_numpy(self.tokens.astype(np.int64)),
            "segments": torch.from_numpy(self.segments.astype(np.int64)),
            "maskable": torch.from_numpy(self.maskable),
            "row": torch.tensor(number),
        }


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
        self._finished: list[Row] = []
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
            self._finished.append(Row(self._tokens, self._segments, self._maskable))
            self._new_row()

    def take(self) -> list[Row]:
        """The rows that were finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

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
) -> Iterator[Row]:
    """Cut texts into rows; a text that reaches its end gets its ending, a cut one does not."""
    for piece in pieces:
        ids = to_block_edge(piece.ids, end_of_text, builder.block_length)
        while len(ids):
            if builder.room < min(smallest, len(ids)):
                builder.close_row()
            placed = min(builder.room, len(ids))
            builder.add(ids[:placed], 0)
            ids = ids[placed:]
        yield from builder.take()
    builder.close_row()
    yield from builder.take()


def leaves_room(piece: Piece, length: int, smallest: int = 4) -> bool:
    """Whether what is given leaves `smallest` of the row's positions to what is trained."""
    return piece.fixed + smallest <= length


def pack_answers(
    pieces: Iterable[Piece],
    builder: RowBuilder,
    ending: int,
    trailing: np.random.Generator | None = None,
    max_trailing: int = 1,
) -> Iterator[Row]:
    """One segment per answer: the prompt fixed, the answer and its ending trained.

    The ending is repeated to the block edge; without blocks (`trailing` given) a random number of
    times, so that no length is preferred. An answer that is cut off gets no ending, and a prompt
    that leaves no room is left out.
    """
    total, left_out, cut = 0, 0, 0
    for piece in pieces:
        total += 1
        if not leaves_room(piece, builder.length):
            left_out += 1
            continue
        cut += len(piece.ids) > builder.length
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
        yield from builder.take()
    builder.close_row()
    yield from builder.take()
    if left_out or cut:
        logger.info(
            "of %d answers %d are left out, whose prompts fill a row of %d tokens, and %d are cut",
            total,
            left_out,
            builder.length,
            cut,
        )


class RowDataset(Dataset[dict[str, torch.Tensor]]):
    """Packed rows in three arrays, in an order that depends on the seed alone.

    An item is `Row.item`.
    """

    def __init__(self, rows: Iterable[Row], seed: int = 0) -> None:
        packed = list(rows)
        if not packed:
            raise ConfigError("there is no row to train on: the files gave no text that fits")
        order = np.random.default_rng(seed).permutation(len(packed))
        self.tokens = np.stack([packed[i].tokens for i in order])  # (N, L)
        self.segments = np.stack([packed[i].segments for i in order])
        self.maskable = np.stack([packed[i].maskable for i in order])

    def fingerprint(self) -> str:
        """What the rows are, in their order: another text or tokenizer gives another one."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.segments, self.maskable):
            digest.update(array.tobytes())
        return f"{len(self)} rows {digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return Row(self.tokens[index], self.segments[index], self.maskable[index]).item(index)


def build_dataset(
    config: DataConfig, stage: str, objective: str, block_length: int, tokenizer: Any, seed: int
) -> RowDataset:
    """Everything a stage trains on: the mix of files, story requests and generated chats."""
    made_up = config.generated_chats + config.story_requests if stage == "sft" else 0
    if not config.mix and not made_up:
        raise ConfigError("data.mix must name at least one file or dataset, got none")
    stores = {name: load_store(name, config, tokenizer, stage) for name in config.mix}
    weights = dict(config.mix)
    if stage == "sft" and config.generated_chats:
        records = generated_chats(config.generated_chats, seed)
        stores["generated"] = PieceStore.from_lists(encode_records(records, tokenizer, stage))
        weights["generated"] = 1.0
    if stage == "sft" and config.story_requests:
        stores["stories"] = story_store(config, tokenizer, seed)
        weights["stories"] = 1.0
    order = mixed_order({name: len(store) for name, store in stores.items()}, weights, seed)
    pieces = (stores[name][index] for name, index in order)
    return RowDataset(
        pack_pieces(pieces, config, stage, objective, block_length, tokenizer, seed), seed
    )


def pack_pieces(
    pieces: Iterable[Piece],
    config: DataConfig,
    stage: str,
    objective: str,
    block_length: int,
    tokenizer: Any,
    seed: int,
) -> Iterator[Row]:
    """Rows of pieces as a stage packs them: texts one after another, or answers with endings."""
    special = special_ids(tokenizer)
    hidden = {special[token] for token in special if token not in (END_OF_TEXT, IM_END)}
    builder = RowBuilder(config.max_seq_length, block_length, special["<|pad|>"], hidden)
    if stage == "pretrain":
        return pack_texts(pieces, builder, special[END_OF_TEXT])
    trailing = None if objective == "block" else np.random.default_rng(seed)
    return pack_answers(pieces, builder, special[IM_END], trailing, config.max_trailing_eos)
