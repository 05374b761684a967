"""The bound on a fixed grid of noise levels: nats per token, bits per byte, standard errors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusiongpt.training.data import RowDataset
from diffusiongpt.training.denoiser import Denoiser
from diffusiongpt.training.ngram import NgramModel
from diffusiongpt.training.noise import corrupt, keyed_generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An evidence bound: an upper bound of the negative log-likelihood; exact with 0 draws.

    One row alone has no standard errors: they are None.
    """

    nats_per_token: float
    standard_error: float | None
    bits_per_byte: float | None
    bits_per_byte_error: float | None
    tokens: int
    rows: int
    draws: int

    def __str__(self) -> str:
        line = f"{with_error(self.nats_per_token, self.standard_error)} nats/token"
        if self.bits_per_byte is not None:
            line += f", {with_error(self.bits_per_byte, self.bits_per_byte_error)} bits/byte"
        how = f"{self.draws} draws each" if self.draws else "exact"
        return f"{line} ({self.tokens} tokens, {self.rows} rows, {how})"


def with_error(value: float, error: float | None) -> str:
    """A figure with its standard error, where it has one."""
    return f"{value:.4f} ± {'unknown' if error is None else f'{error:.4f}'}"


def stratified_grid(draws: int, blocks: int, generator: torch.Generator) -> Tensor:
    """Times (draws, blocks): over the draws, each block visits each of `draws` equal parts once."""
    order = torch.rand(draws, blocks, generator=generator).argsort(0)
    offset = torch.rand(draws, blocks, generator=generator, dtype=torch.float64)
    return (order + offset) / draws


@torch.no_grad()
def evaluate_bound(
    denoiser: Denoiser,
    dataset: RowDataset,
    ending_ids: tuple[int, ...],
    byte_lengths: Tensor | None = None,
    draws: int = 16,
    batch_size: int = 16,
    max_rows: int | None = None,
    seed: int = 0,
) -> Bound:
    """The bound of a denoiser on rows, every maskable token counted, the ending included.

    An ending (one of `ending_ids`) repeated to the block edge adds all its nats and counts as one
    token of no bytes, so the figure is never too good. The standard error is over rows, and holds
    the error of the draws too. `byte_lengths` (V,) is how many bytes of text each token stands for.
    """
    denoiser.eval()
    rows = min(len(dataset), max_rows or len(dataset))
    nats, counts, sizes = (torch.zeros(rows, dtype=torch.float64) for _ in range(3))
    for start in range(0, rows, batch_size):
        stop = min(start + batch_size, rows)
        items = [dataset[index] for index in range(start, stop)]
        tokens, segments, maskable = (
            torch.stack([item[key] for item in items]) for key in ("tokens", "segments", "maskable")
        )
        counted = counted_tokens(tokens, segments, maskable, ending_ids)
        counts[start:stop] = counted.sum(1).double()
        if byte_lengths is not None:
            sizes[start:stop] = (byte_lengths[tokens] * counted).sum(1).double()
        if denoiser.objective == "causal":
            draws = 0
            nats[start:stop] = row_likelihoods(denoiser, tokens, segments, counted)
            continue
        key = seed * 1_000_003 + start
        nats[start:stop] = row_bounds(denoiser, tokens, segments, maskable, draws, key)
    return summarise(nats, counts, draws, None if byte_lengths is None else sizes)


def score_rows(
    model: NgramModel,
    dataset: RowDataset,
    ending_ids: tuple[int, ...],
    byte_lengths: Tensor | None = None,
    max_rows: int | None = None,
) -> Bound:
    """The exact likelihood of the same counted tokens under an n-gram that sees the same rows."""
    rows = min(len(dataset), max_rows or len(dataset))
    nats, counts, sizes = (torch.zeros(rows, dtype=torch.float64) for _ in range(3))
    for index in range(rows):
        row = dataset[index]
        tokens, segments = row["tokens"], row["segments"]
        counted = counted_tokens(tokens[None], segments[None], row["maskable"][None], ending_ids)[0]
        documents = [tokens[segments == s].tolist() for s in range(1, int(segments.max()) + 1)]
        nll = torch.from_numpy(model.nll(documents))  # in the order of the row, padding left out
        nats[index] = nll[counted[segments > 0]].sum()
        counts[index] = counted.sum()
        if byte_lengths is not None:
            sizes[index] = (byte_lengths[tokens] * counted).sum()
    return summarise(nats, counts, 0, None if byte_lengths is None else sizes)


def token_byte_lengths(tokenizer: Any) -> Tensor | None:
    """How many bytes of text each id stands for, specials none; None if it is not byte-level."""
    if "ByteLevel" not in str(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]):
        return None
    lengths = torch.zeros(len(tokenizer), dtype=torch.long)
    special = set(tokenizer.all_special_ids)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if index in special else len(token)  # one character is one byte
    return lengths


def row_bounds(
    denoiser: Denoiser, tokens: Tensor, segments: Tensor, maskable: Tensor, draws: int, seed: int
) -> Tensor:
    """The bound of each row in nats, (B,) float64, averaged over the grid."""
    batch, length = tokens.shape
    block = length if denoiser.objective == "masked" else denoiser.block_length
    generator = keyed_generator(seed, 0)
    grid = stratified_grid(draws, batch * (length // block), generator)
    total = torch.zeros(batch, dtype=torch.float64)
    for times in grid:
        scores = torch.rand(batch, length, generator=generator)
        masked, weights = corrupt(maskable, times.view(batch, -1), scores)
        nll = denoiser.nll(tokens, segments, masked).double() * weights[masked].double()
        row = torch.arange(batch)[:, None].expand(batch, length)[masked]
        total.index_add_(0, row, nll)
    return total / draws


def row_likelihoods(
    denoiser: Denoiser, tokens: Tensor, segments: Tensor, counted: Tensor
) -> Tensor:
    """The exact NLL of each row's counted tokens under a next-token model, (B,) float64.

    The first token of a segment, which the model was not trained to predict, costs the logarithm
    of the vocabulary that may be emitted.
    """
    nll = denoiser.next_token_nll(tokens, segments).double()
    return nll.masked_fill(~counted, 0.0).sum(1)  # what is never emitted, padding, costs infinity


def counted_tokens(
    tokens: Tensor, segments: Tensor, maskable: Tensor, ending_ids: tuple[int, ...]
) -> Tensor:
    """(B, L) bool: maskable positions, without an ending that repeats the one before it."""
    repeated = torch.zeros_like(maskable)
    repeated[:, 1:] = (tokens[:, 1:] == tokens[:, :-1]) & (segments[:, 1:] == segments[:, :-1])
    ending = torch.isin(tokens, torch.tensor(ending_ids, device=tokens.device))
    return maskable & ~(repeated & ending)


def summarise(nats: Tensor, counts: Tensor, draws: int, sizes: Tensor | None = None) -> Bound:
    """Ratios of sums over rows, with the standard errors of ratios; all arguments are (R,)."""
    mean, error = _ratio(nats, counts)
    bits = None if sizes is None else _ratio(nats / math.log(2), sizes)
    return Bound(
        nats_per_token=mean,
        standard_error=error,
        bits_per_byte=None if bits is None else bits[0],
        bits_per_byte_error=None if bits is None else bits[1],
        tokens=int(counts.sum()),
        rows=len(nats),
        draws=draws,
    )


def _ratio(top: Tensor, bottom: Tensor) -> tuple[float, float | None]:
    """sum(top) / sum(bottom) and its standard error over rows, which one row alone has not."""
    rows = len(top)
    mean = float(top.sum() / bottom.sum())
    if rows == 1:
        return mean, None
    spread = (top - mean * bottom).square().sum() * rows / (rows - 1)
    return mean, float(spread.sqrt() / bottom.sum())
