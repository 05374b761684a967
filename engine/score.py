"""How likely a model finds a text: the evidence lower bound, or each token given all others.

The bound is that of masked diffusion (arXiv 2406.07524) in its any-order form: of a region's n
positions k are masked, k uniform on 1..n, and the masked tokens' negative log-likelihoods weigh
n / k. A bidirectional model has one region, the whole text; a block-causal one has a region for
every block, which sees the clean blocks before it (BD3-LM, arXiv 2503.09573).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.randomness import Purpose, counter_keys, uniform, wrap_64
from diffusiongpt.engine.sampling import Head

ScoreMethod = Literal["bound", "leave_one_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a text costs.

    Attributes:
        nats: upper estimate of its negative log-likelihood (the sum over its tokens).
        standard_error: of `nats`, over the draws; 0 where nothing was drawn.
        num_tokens: tokens that were scored. num_bytes: their UTF-8 bytes, None without text.
    """

    nats: float
    standard_error: float
    num_tokens: int
    num_bytes: int | None = None

    @property
    def nats_per_token(self) -> float:
        """The mean over its tokens."""
        return self.nats / self.num_tokens

    @property
    def bits_per_byte(self) -> float | None:
        """The mean over its bytes, None without text."""
        return None if not self.num_bytes else self.nats / math.log(2) / self.num_bytes


@dataclass(frozen=True, slots=True)
class Region:
    """Positions start..stop that are masked together; the model sees the canvas up to `stop`."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Corrupted:
    """A canvas with masks: its ids (L,), the masked positions, their weight and their draw."""

    ids: Tensor
    masked: Tensor
    weight: float
    draw: int


def score_tokens(
    model: LoadedModel,
    head: Head,
    given: Sequence[int],
    token_ids: Sequence[int],
    *,
    method: ScoreMethod,
    draws: int,
    seed: int,
    token_budget: int,
    num_bytes: int | None,
) -> Score:
    """Score `token_ids` after `given`.

    The standard error takes the stratified noise levels for independent ones, so it is on the
    safe side.

    Raises:
        InvalidRequest: nothing to score, more than the context holds, or no such method.
    """
    _check(model, len(given), token_ids, method, draws)
    ids = torch.tensor([*given, *token_ids], device=model.device)
    regions = list(_regions(model, len(ids), len(given)))
    if method == "bound":
        corrupted = [
            _corrupt(ids, region, index, draw, draws, seed, model)
            for draw in range(draws)
            for index, region in enumerate(regions)
        ]
    else:
        draws = 1
        corrupted = [
            _mask(ids, region, torch.tensor([position], device=ids.device), 1.0, 0, model)
            for region in regions
            for position in range(region.start, region.stop)
        ]
    nats = _nats_of_draws(model, head, ids, corrupted, draws, token_budget)
    return Score(
        nats=nats.mean().item(),
        standard_error=nats.std().item() / math.sqrt(draws) if draws > 1 else 0.0,
        num_tokens=len(token_ids),
        num_bytes=num_bytes,
    )


def _check(
    model: LoadedModel, num_given: int, token_ids: Sequence[int], method: str, draws: int
) -> None:
    if method not in get_args(ScoreMethod):
        raise InvalidRequest(
            f"method must be one of {', '.join(get_args(ScoreMethod))}, got {method!r}", "method"
        )
    if draws < 1:
        raise InvalidRequest(f"draws must be at least 1, got {draws}", "draws")
    if not token_ids:
        raise InvalidRequest("a text to score must have at least one token, got none", "texts")
    if num_given + len(token_ids) > model.context_length:
        raise ContextLengthExceeded(
            f"prompt and text make {num_given + len(token_ids)} tokens, more than the model's "
            f"context of {model.context_length}",
            "texts",
        )


def _regions(model: LoadedModel, length: int, num_given: int) -> Iterator[Region]:
    if model.attention != "block_causal" or not model.block_length:
        yield Region(num_given, length)
        return
    start = num_given
    while start < length:
        stop = min((start // model.block_length + 1) * model.block_length, length)
        yield Region(start, stop)
        start = stop


def _corrupt(
    ids: Tensor, region: Region, index: int, draw: int, draws: int, seed: int, model: LoadedModel
) -> Corrupted:
    """Mask k of a region's n positions, k / n in the draw's own stratum of (0, 1]."""
    size = region.stop - region.start
    key = torch.tensor(wrap_64(seed), device=ids.device)
    where = torch.tensor(index, device=ids.device)
    time = (draw + uniform(counter_keys(key, Purpose.TIME, where, draw)).item()) / draws
    count = max(math.ceil(time * size), 1)
    position = torch.arange(region.start, region.stop, device=ids.device)
    order = uniform(counter_keys(key, Purpose.MASK, position, draw)).argsort(stable=True)
    masked = position[order[:count]]
    return _mask(ids, region, masked, size / count, draw, model)


def _mask(
    ids: Tensor, region: Region, masked: Tensor, weight: float, draw: int, model: LoadedModel
) -> Corrupted:
    canvas = ids[: region.stop].clone()
    canvas[masked] = model.mask_token_id
    return Corrupted(canvas, masked, weight, draw)


def _nats_of_draws(
    model: LoadedModel,
    head: Head,
    ids: Tensor,
    corrupted: Sequence[Corrupted],
    draws: int,
    token_budget: int,
) -> Tensor:
    """(draws,) float64: the weighted NLLs of each draw's masked tokens."""
    nats = torch.zeros(draws, dtype=torch.float64)
    block_length = model.block_length if model.attention == "block_causal" else None
    for batch in within_budget(corrupted, token_budget):
        found = token_log_probs(model, head, ids, batch, block_length)
        for each, log_prob in zip(batch, found, strict=True):
            nats[each.draw] += each.weight * -log_prob.sum().item()
    return nats


def within_budget(corrupted: Sequence[Corrupted], budget: int) -> Iterator[list[Corrupted]]:
    """Canvases in batches of at most `budget` tokens, or of one."""
    batch: list[Corrupted] = []
    total = 0
    for each in corrupted:
        if batch and total + len(each.ids) > budget:
            yield batch
            batch, total = [], 0
        batch.append(each)
        total += len(each.ids)
    if batch:
        yield batch


@torch.inference_mode()
def token_log_probs(
    model: LoadedModel,
    head: Head,
    ids: Tensor,
    batch: Sequence[Corrupted],
    block_length: int | None,
) -> list[Tensor]:
    """The log-probabilities of each canvas's masked tokens, all canvases in one packed forward.

    Args:
        ids: (L,) the tokens that were there before any was masked.
        block_length: of block-causal attention; None where every position sees all.
    """
    lengths = tuple(len(each.ids) for each in batch)
    packed = torch.cat([each.ids for each in batch])[None]
    positions = torch.cat([torch.arange(n, device=ids.device) for n in lengths])[None]
    hidden = model.backbone(
        packed, positions, AttentionPlan(lengths=lengths, block_length=block_length)
    )
    rows, start = [], 0
    for each in batch:
        shift = 1 if model.logit_shift else 0
        rows.append(start + (each.masked - shift).clamp(min=0))
        start += len(each.ids)
    targets = torch.cat([ids[each.masked] for each in batch])
    log_prob = head.log_prob(hidden[torch.cat(rows)], targets)
    return list(torch.split(log_prob, [len(each.masked) for each in batch]))
