"""Logits to statistics and tokens, a bounded number of rows at a time.

Statistics rank positions, and only then tokens are drawn, for the chosen rows alone; so no
(rows, vocabulary) tensor is ever larger than one chunk, and with the fused head there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusiongpt.engine.bias import RowBias
from diffusiongpt.engine.fused_head import FusedHead
from diffusiongpt.engine.randomness import gumbel
from diffusiongpt.engine.rows import DrawParams, Draws, Rows, RowStatistics

# A banned token's logit: finite, because 0 * inf in the entropy would be nan.
BANNED = -1e30
# Logits whose noise, of 8 bytes each, a core's second cache holds.
_NUM_CACHED = 2**18

R = TypeVar("R", bound=Rows)


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
        self._fused: FusedHead | None = None

    def fuse(self, before: Callable[[Tensor], Tensor], product: nn.Module) -> None:
        """Run as one kernel what needs no logits as a whole: rows without a bias, from whose
        distribution nothing is cut off and no top tokens are handed out.

        Args:
            before, product: the two parts of `project`; see `FusedHead`.

        Raises:
            LoadError: the kernel cannot be run here, or its results are not those of the chunks.
        """
        fused = FusedHead(before, product, self._banned, delete_token_id=self._delete)
        fused.check_against(self)
        self._fused = fused

    @property
    def is_fused(self) -> bool:
        """Whether what can be run as one kernel is."""
        return self._fused is not None

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
        if self._fused is not None and bias is None:
            return self._fused.statistics(hidden, held, may_delete)
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
        if self._fused is not None and bias is None and num_top is None and not truncate:
            return self._fused.draw(hidden, params, may_delete)
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
        if self._fused is not None:
            return self._fused.log_prob(hidden, token_id)
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
