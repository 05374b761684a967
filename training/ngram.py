"""An interpolated n-gram with absolute discounting: the baseline beside every bound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffusiongpt.training.config import ConfigError

Ids = npt.NDArray[np.int64]


class NgramModel:
    """Counts of n-grams up to `order`, smoothed by absolute discounting down to uniform.

    p(w | h) = max(c(hw) - d, 0) / c(h) + d N(h) / c(h) p(w | h'), where N(h) is how many different
    words follow h and h' is h without its first word.
    """

    def __init__(self, order: int, vocab_size: int, discount: float = 0.8) -> None:
        if order < 1:
            raise ConfigError(f"order must be >= 1, got {order}")
        self.order, self.vocab_size, self.discount = order, vocab_size, discount
        self._grams: list[tuple[Ids, Ids]] = []  # per length n: sorted hashes and their counts
        self._contexts: list[tuple[Ids, Ids, Ids]] = []  # sorted hashes, counts, successors

    def fit(self, documents: Iterable[Sequence[int] | npt.NDArray[Any]]) -> NgramModel:
        """Count the n-grams of documents, none of them across a document's edge."""
        stream, start = _concatenate(documents)
        for n in range(1, self.order + 1):
            grams = _hash_windows(stream, start, n)
            contexts = _hash_windows(stream, start, n, drop_last=True)
            unique, first, counts = np.unique(grams, return_index=True, return_counts=True)
            of_gram = contexts[first]  # the context of each different n-gram
            context, inverse = np.unique(of_gram, return_inverse=True)
            totals = np.bincount(inverse, weights=counts).astype(np.int64)
            self._grams.append((unique, counts.astype(np.int64)))
            self._contexts.append((context, totals, np.bincount(inverse).astype(np.int64)))
        return self

    def nll(self, documents: Iterable[Sequence[int] | npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """Negative log-likelihood in nats of every token of the documents, in order."""
        stream, start = _concatenate(documents)
        probability = np.full(len(stream), 1.0 / self.vocab_size)
        for n in range(1, self.order + 1):
            valid = start >= n - 1
            gram = _hash_windows(stream, start, n, only_valid=False)
            context = _hash_windows(stream, start, n, drop_last=True, only_valid=False)
            count = _look_up(gram, *self._grams[n - 1])
            keys, totals, successors = self._contexts[n - 1]
            total, kinds = _look_up(context, keys, totals), _look_up(context, keys, successors)
            seen = valid & (total > 0)
            safe = np.maximum(total, 1)
            mixed = (
                np.maximum(count - self.discount, 0) + self.discount * kinds * probability
            ) / safe
            probability = np.where(seen, mixed, probability)
        surprise: npt.NDArray[np.float64] = -np.log(probability)
        return surprise


def _concatenate(documents: Iterable[Sequence[int] | npt.NDArray[Any]]) -> tuple[Ids, Ids]:
    """All ids in one stream, and each one's distance from the start of its document."""
    parts = [np.asarray(document, dtype=np.int64) for document in documents]
    stream = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    start = np.concatenate([np.arange(len(part)) for part in parts]) if parts else stream
    return stream, start


def _hash_windows(
    stream: Ids, start: Ids, n: int, drop_last: bool = False, only_valid: bool = True
) -> Ids:
    """A 64-bit hash of the n ids that end at each position (without the last: its context)."""
    with np.errstate(over="ignore"):
        result = np.full(len(stream), n, dtype=np.uint64)
        for back in range(n - 1, 0 if drop_last else -1, -1):
            shifted = np.zeros(len(stream), dtype=np.uint64)
            shifted[back:] = stream[: len(stream) - back].astype(np.uint64)
            result = (result ^ (shifted + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
            result ^= result >> np.uint64(29)
    hashed = result.view(np.int64)
    return hashed[start >= n - 1] if only_valid else hashed


def _look_up(keys: Ids, known: Ids, values: Ids) -> Ids:
    """The value of each key, 0 for unknown ones; `known` is sorted."""
    if not len(known):  # every document is shorter than the n-gram
        return np.zeros(len(keys), dtype=values.dtype)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, values[place], 0)
