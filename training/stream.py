"""Rows that are read while a run goes on, for data of which nobody wants to wait for the end.

The order depends on the seed alone: a run that is resumed reads on where it stopped, and so many
workers as it has give the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from diffusiongpt.training.config import ConfigError, TrainingConfig
from diffusiongpt.training.data import Row, leaves_room, pack_pieces
from diffusiongpt.training.pieces import Piece, read_pieces


class RowStream(IterableDataset[dict[str, torch.Tensor]]):
    """The rows of a mix without an end: what ends begins again.

    An item is `Row.item`. Where a row begins depends on all that came before it, so each of several
    workers reads everything and gives its share of the batches: one worker reads while the run
    trains, and more of them are no faster.

    Raises:
        ConfigError, FileNotFoundError: a source that cannot be read, or has no text that fits.
    """

    def __init__(self, config: TrainingConfig, tokenizer: Any) -> None:
        self.config, self.tokenizer = config, tokenizer
        for name in config.data.mix:  # what cannot be read is refused now, and not by a worker
            next(_repeat(name, config, tokenizer))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for index, row in enumerate(self.rows()):
            if index // self.config.run.batch_size % count == number:
                yield row.item(index)

    def rows(self) -> Iterator[Row]:
        """All rows, in the order of the run."""
        config = self.config
        packed = pack_pieces(
            draw_pieces(config, self.tokenizer),
            config.data,
            config.stage,
            config.diffusion.objective,
            config.alignment,
            self.tokenizer,
            config.run.seed,
        )
        return shuffle(packed, config.data.shuffle_buffer_size, config.run.seed)


def draw_pieces(config: TrainingConfig, tokenizer: Any) -> Iterator[Piece]:
    """Pieces of all sources in turn, each drawn with its weight in `data.mix`, without an end."""
    data = config.data
    sources = [_repeat(name, config, tokenizer) for name in data.mix]
    weights = np.asarray(list(data.mix.values()), dtype=np.float64)
    generator = np.random.default_rng(config.run.seed)
    while True:
        yield next(sources[generator.choice(len(sources), p=weights / weights.sum())])


def _repeat(name: str, config: TrainingConfig, tokenizer: Any) -> Iterator[Piece]:
    while True:
        empty = True
        for ids, fixed in read_pieces(name, config.data, tokenizer, config.stage):
            piece = Piece(np.asarray(ids, dtype=np.int32), fixed)
            if leaves_room(piece, config.data.max_seq_length):
                empty = False
                yield piece
        if empty:
            raise ConfigError(
                f"data.mix.{name} has no text that fits, and a stream of it would never begin"
            )


def shuffle(rows: Iterable[Row], size: int, seed: int) -> Iterator[Row]:
    """Rows in a random order: of `size` that are held one is drawn, and the next replaces it."""
    generator = np.random.default_rng(seed)
    held: list[Row] = []
    for row in rows:
        if len(held) < size:
            held.append(row)
            continue
        place = int(generator.integers(size))
        yield held[place]
        held[place] = row
    yield from (held[int(place)] for place in generator.permutation(len(held)))
