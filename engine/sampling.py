"""Logits to statistics and tokens, a bounded number of rows at a time.

Statistics rank positions, and only then tokens are drawn, for the chosen rows alone; so no
(rows, vocabulary) tensor is ever larger than one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusiongpt.engine.bias import RowBias
from diffusiongpt.engine.randomness import gumbel

# A banned token's logit: finite, because 0 * inf in the entropy would be nan.
BANNED = -1e30
# Logits whose noise, of 8 bytes each, a core's second cache holds.
_NUM_CACHED = 2**18


R = TypeVar("R", bound="Rows")


class Rows:
    """A record of tensors with a row for each position; those that nobody asked for are None."""

    __slots__ = ()

    def at(self, which: slice | Tensor) -> Self:
        """Some of the rows: a slice, or (R,) bool."""
        columns = (getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]
        return type(self)(*(None if each is None else each[which] for each in columns))

    def columns(self) -> list[Tensor]:
        """The tensors that there are."""
        every = (getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]
        return [each for each in every if each is not None]

    def to_host(self) -> Self:
        """The same on the host."""
        columns = (getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]
        return type(self)(*(None if each is None else each.cpu() for each in columns))

    def padded(self, count: int) -> Self:
        """The rows and `count` more of zeros; of records of (R,) columns."""
        columns = (getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]
        return type(self)(*(F.pad(each, (0, count)) for each in columns))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, of which there is at least one."""
        if len(parts) == 1:
            return parts[0]
        names = [each.name for each in fields(cls)]  # type: ignore[arg-type]
        columns = ([getattr(part, name) for part in parts] for name in names)
        return cls(*(None if each[0] is None else torch.cat(each) for each in columns))


@dataclass(frozen=True, slots=True)
class RowStatistics(Rows):
    """What a policy may know of a position's distribution, at temperature 1 and after bans.

    Attributes:
        log_top: (R,) log of the top probability. margin: (R,) top-1 less top-2 probability.
        entropy: (R,) nats. top_id: (R,) int64, the most likely token.
        log_held: (R,) log-probability of the token that the position holds.
    """

    log_top: Tensor
    margin: Tensor
    entropy: Tensor
    top_id: Tensor
    log_held: Tensor


@dataclass(frozen=True, slots=True)
class Draws(Rows):
    """Drawn tokens: `token_id` (R,) int64, `log_prob` (R,) at temperature 1 and after bans.

    `top_id` and `top_log_prob` (R, K) are the most likely tokens, best first, where asked for.
    """

    token_id: Tensor
    log_prob: Tensor
    top_id: Tensor | None = None
    top_log_prob: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DrawParams(Rows):
    """Per-row parameters of the token draw; `key` is the row's counter key (int64)."""

    key: Tensor
    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    min_p: Tensor


class Head:
    """The output head over chosen rows of the hidden states, `chunk` rows at a time.

    Args:
        project: (R, H) hidden rows to (R, V) float32 logits.
        banned: ids that are never emitted. delete_token_id: one of them that is an edit's to write.
        chunk: rows per call of `project`; bounds the largest logits tensor.
        pad: pad every call to exactly `chunk` rows, so that a row's logits do not depend on
            how many rows share the call.
    """

    def __init__(
        self,
        project: Callable[[Tensor], Tensor],
        banned: Tensor,
        *,
        chunk: int,
        pad: bool,
        delete_token_id: int | None = None,
    ) -> None:
        self._project = project
        self._banned = banned
        self._chunk = chunk
        self._pad = pad
        self._delete = delete_token_id
        self._measure: Callable[..., RowStatistics] = row_statistics
        self._draw: Callable[..., Draws] = draw_tokens

    @torch.inference_mode()
    def compile(self, vocab_size: int) -> None:
        """Compile the arithmetic over the vocabulary: dozens of passes over (R, V) become a few.
        It is tried at once, so that no request has to wait for a compiler."""
        self._measure = _of_two_rows(torch.compile(row_statistics, dynamic=True))
        self._draw = _of_two_rows(torch.compile(draw_tokens, dynamic=True))
        logits = torch.zeros(3, vocab_size, device=self._banned.device)
        real = torch.zeros(3, device=logits.device)
        whole = real.long()
        self._measure(logits, whole)
        for truncate in (False, True):
            self._draw(logits, DrawParams(whole, real, real, whole, real), truncate=truncate)

    def statistics(
        self,
        hidden: Tensor,
        held: Tensor,
        bias: RowBias | None = None,
        may_delete: Tensor | None = None,
    ) -> RowStatistics:
        """Statistics of each row of `hidden` (R, H), which holds the token ids `held` (R,).

        Args:
            bias: what is added to the logits. may_delete: (R,) bool, rows that an edit may delete.
        """
        parts = []
        for start, stop in self._chunks(len(hidden)):
            logits = self._logits(hidden, start, stop, bias, may_delete)
            parts.append(self._measure(logits, held[start:stop]))
        return RowStatistics.join(parts)

    def draw(
        self,
        hidden: Tensor,
        params: DrawParams,
        *,
        truncate: bool,
        bias: RowBias | None = None,
        may_delete: Tensor | None = None,
        num_top: int | None = None,
    ) -> Draws:
        """Draw a token for each row of `hidden` (R, H), which may be none.

        Args:
            truncate: some row has top_p, top_k or min_p. bias: what is added to the logits.
            may_delete: (R,) bool, rows that an edit may delete.
            num_top: hand out so many of each row's most likely tokens as well; None is none.
        """
        parts = []
        for start, stop in self._chunks(len(hidden)):
            logits = self._logits(hidden, start, stop, bias, may_delete)
            draws = self._draw_in_cache(logits, params.at(slice(start, stop)), truncate)
            parts.append(draws if num_top is None else with_top_tokens(draws, logits, num_top))
        return Draws.join(parts)

    def _draw_in_cache(self, logits: Tensor, params: DrawParams, truncate: bool) -> Draws:
        """The draws of logits (R, V), so many rows at a time as a core's cache holds: the noise
        takes dozens of passes over them (twice as fast at 32 x 150,000)."""
        num_rows = max(len(logits), 1)
        if self._draw is draw_tokens and logits.device.type == "cpu":
            num_rows = max(_NUM_CACHED // logits.shape[1], 1)
        starts = range(0, max(len(logits), 1), num_rows)
        parts = [slice(start, start + num_rows) for start in starts]
        return Draws.join(
            [self._draw(logits[part], params.at(part), truncate=truncate) for part in parts]
        )

    def log_prob(self, hidden: Tensor, token_id: Tensor) -> Tensor:
        """Log-probability (R,) of a given token at each row of `hidden` (R, H), bans applied."""
        parts = []
        for start, stop in self._chunks(len(hidden)):
            logits = self._logits(hidden, start, stop)
            wanted = token_id[start:stop, None]
            parts.append(logits.gather(1, wanted)[:, 0] - logits.logsumexp(dim=-1))
        return torch.cat(parts)

    def _chunks(self, num_rows: int) -> list[tuple[int, int]]:
        # One chunk even of no rows: it gives the results their types and shapes.
        starts = range(0, max(num_rows, 1), self._chunk)
        return [(start, min(start + self._chunk, num_rows)) for start in starts]

    def _logits(
        self,
        hidden: Tensor,
        start: int,
        stop: int,
        bias: RowBias | None = None,
        may_delete: Tensor | None = None,
    ) -> Tensor:
        """Logits (stop - start, V) of some rows of `hidden`, their bias added, bans applied."""
        hidden = hidden[start:stop]
        num_rows = len(hidden)
        if self._pad and num_rows < self._chunk:
            padding = hidden.new_zeros(self._chunk - num_rows, hidden.shape[1])
            hidden = torch.cat([hidden, padding])
        logits = self._project(hidden)[:num_rows]
        if bias is not None:
            bias.rows(start, stop).add_to(logits)
        if may_delete is None or self._delete is None:
            return logits.index_fill_(1, self._banned, BANNED)
        deletion = logits[:, self._delete].masked_fill(~may_delete[start:stop], BANNED)
        logits.index_fill_(1, self._banned, BANNED)
        logits[:, self._delete] = deletion
        return logits


def row_statistics(logits: Tensor, held: Tensor) -> RowStatistics:
    """Statistics of logits (R, V) float32 and of the token ids `held` (R,) among them."""
    log_sum = logits.logsumexp(dim=-1)
    top = logits.topk(2, dim=-1).values
    log_top = top[:, 0] - log_sum
    margin = log_top.exp() - (top[:, 1] - log_sum).exp()
    # H = -sum p log p = logsumexp(z) - sum p z
    expected = (logits - log_sum[:, None]).exp_().mul_(logits).sum(dim=-1)
    # argmax and not topk's index: ties must fall as they do in `draw_tokens` at temperature 0
    top_id = logits.argmax(dim=-1)
    log_held = logits.gather(1, held[:, None])[:, 0] - log_sum
    entropy = (log_sum - expected).clamp_(min=0.0)
    return RowStatistics(log_top, margin, entropy, top_id, log_held)


def draw_tokens(logits: Tensor, params: DrawParams, *, truncate: bool) -> Draws:
    """Draw one token per row by the Gumbel-max trick; temperature 0 takes the most likely.

    The noise of a token depends on its id alone, so truncation never changes the noise of
    the tokens that remain.

    Args:
        logits: (R, V) float32, bans applied.
        params: per-row draw parameters.
        truncate: whether any row asks for top_p, top_k or min_p (sorting is skipped otherwise).
    """
    # softmax(z / T) drawn by argmax(z / T + g) = argmax(z + T g): no division, and T = 0 is greedy
    noisy = logits
    if truncate:
        noisy = truncated(logits, params)
    noise = gumbel(params.key, logits.shape[1])
    token_id = (noisy + params.temperature[:, None] * noise).argmax(dim=-1)
    log_prob = logits.gather(1, token_id[:, None])[:, 0] - logits.logsumexp(dim=-1)
    return Draws(token_id, log_prob)


def _of_two_rows(compiled: Callable[..., R]) -> Callable[..., R]:
    """A compiled function of logits and what belongs to their rows, which always gets two rows
    at least: sizes of 0 and 1 would be compiled on their own."""

    def run(logits: Tensor, given: Tensor | DrawParams, **options: bool) -> R:
        if len(logits) >= 2:
            return compiled(logits, given, **options)
        missing = 2 - len(logits)
        padded = given.padded(missing) if isinstance(given, Rows) else F.pad(given, (0, missing))
        result = compiled(F.pad(logits, (0, 0, 0, missing)), padded, **options)
        return result.at(slice(len(logits)))

    return run


def with_top_tokens(draws: Draws, logits: Tensor, num_top: int) -> Draws:
    """The draws of logits (R, V) with the rows' most likely tokens, at most V of them."""
    top = logits.topk(min(num_top, logits.shape[1]), dim=-1)
    log_prob = top.values - logits.logsumexp(dim=-1)[:, None]
    return Draws(draws.token_id, draws.log_prob, top.indices, log_prob)


def truncated(logits: Tensor, params: DrawParams) -> Tensor:
    """Ban what top_k, top_p and min_p leave out; the best token always stays.

    What is kept: the k most likely tokens; of these the smallest set of most likely ones that
    holds probability p at the row's temperature, and what is at least `min_p` times as probable
    there as the best (arXiv 2407.01082).
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    beyond_k = (params.top_k[:, None] > 0) & (rank >= params.top_k[:, None])
    ordered = ordered.masked_fill(beyond_k, BANNED)
    tempered = (ordered / params.temperature.clamp(min=1e-6)[:, None]).softmax(dim=-1)
    before = tempered.cumsum(dim=-1) - tempered
    left_out = beyond_k | ((before >= params.top_p[:, None]) & (params.top_p[:, None] < 1.0))
    left_out |= tempered < params.min_p[:, None] * tempered[:, :1]
    left_out[:, 0] = False
    return logits.masked_fill(torch.zeros_like(left_out).scatter_(1, order, left_out), BANNED)
