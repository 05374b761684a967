"""One denoising step for every slot of a batch: plan, forward, choose, draw, commit.

The batch is one row of packed tokens without padding. The head runs only on rows that a policy
must look at or that are committed; a policy that ranks by hitting time alone is *blind*: what
it commits is known before the forward, so nothing else of its canvas goes through the head.

Legend: A slots of the batch, W positions of the widest block, T packed tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from diffusiongpt.engine.attention import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.commit import choose_positions, commits_due
from diffusiongpt.engine.randomness import Purpose, counter_keys
from diffusiongpt.engine.sampling import DrawParams, Draws, Head, RowStatistics
from diffusiongpt.engine.slots import SlotRows, SlotTable

# Padding of a fixed-size forward goes in short segments: attention is quadratic in a segment.
_PADDING_SEGMENT = 64


class Backbone(Protocol):
    """The part of a loaded model that a step needs."""

    @property
    def logit_shift(self) -> bool:
        """Whether the logits at a position predict the next one."""
        ...

    def backbone(self, ids: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """(1, T) ids and positions to (T, H) hidden states."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """The canvas positions start..stop of a slot that the model computes in this step.

    With a cache it sees what that keeps as well, and positions count from the canvas's start;
    without one they count from `start`.
    """

    slot: int
    start: int
    stop: int
    cache: SlotCache | None = None

    @property
    def length(self) -> int:
        """Tokens of the window."""
        return self.stop - self.start

    @property
    def first_position_id(self) -> int:
        """What the model takes the window's first token to stand at."""
        return 0 if self.cache is None else self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """What the host knows of a batch, so that the step need not ask the device.

    Attributes:
        width: positions of the widest block. max_gap: the largest gap.
        any_blind, any_seeing: whether some policy ranks by hitting time alone; by statistics.
        any_random: whether some slot draws with a temperature above 0.
        any_truncated: whether some slot draws with top_p or top_k.
        num_top: most likely tokens to hand out with each commit, None if nobody asks.
        block_length: of block-causal attention, or None.
        num_tokens: pad the forward to this many tokens, or 0.
    """

    width: int
    max_gap: int
    any_blind: bool
    any_seeing: bool
    any_random: bool
    any_truncated: bool
    block_length: int | None
    num_tokens: int
    num_top: int | None = None


@dataclass(frozen=True, slots=True)
class Commits:
    """What one step committed: (N,) each, and the block step (A,) that each slot reached.

    `row` indexes the batch's slots; `position` is a canvas position; `confidence` is the
    token's probability at temperature 1. `draws` has its logarithm, and the most likely tokens
    if someone asks.
    """

    row: Tensor
    position: Tensor
    token_id: Tensor
    confidence: Tensor
    step: Tensor
    draws: Draws


@dataclass(frozen=True, slots=True)
class Grid:
    """The positions of each slot's block, (A, W) each.

    `position` is a canvas position, `packed` the packed token whose logits predict it.
    """

    position: Tensor
    packed: Tensor
    candidate: Tensor
    hitting: Tensor


@torch.inference_mode()
def denoise(
    model: Backbone, head: Head, table: SlotTable, windows: Sequence[Window], facts: BatchFacts
) -> Commits:
    """Take every slot of the batch one denoising step further."""
    rows = table.rows([window.slot for window in windows])
    grid = _block_grid(table, rows, windows, facts.width, shift=model.logit_shift)
    step, time = _next_step(rows, grid)
    at_least = commits_due(grid.candidate.sum(dim=1), rows.steps - rows.step)
    if facts.any_blind:
        grid, at_least = _choose_blindly(rows, grid, at_least, time, facts.max_gap)
    hidden = _forward(model, table, windows, facts)
    statistics = _look(head, hidden, grid, rows) if facts.any_seeing else _no_statistics(grid)
    if facts.any_seeing:
        chosen = choose_positions(
            rows.policy,
            statistics,
            grid.hitting,
            grid.candidate,
            at_least=at_least,
            time=time,
            max_gap=facts.max_gap,
        )
    else:
        chosen = grid.candidate
    row, column = chosen.nonzero(as_tuple=True)
    position = grid.position[row, column]
    if facts.any_random or facts.any_blind or facts.num_top is not None:
        params = _draw_params(rows, row, position)
        tokens = hidden[grid.packed[row, column]]
        draws = head.draw(tokens, params, truncate=facts.any_truncated, num_top=facts.num_top)
    else:
        draws = Draws(statistics.top_id[row, column], statistics.log_top[row, column])
    slot = rows.slot[row]
    table.ids[slot, position] = draws.token_id
    table.masked[slot, position] = False
    table.set_step(rows.slot, step)
    return Commits(row, position, draws.token_id, draws.log_prob.exp(), step, draws)


def _block_grid(
    table: SlotTable, rows: SlotRows, windows: Sequence[Window], width: int, *, shift: bool
) -> Grid:
    device = table.ids.device
    starts = torch.tensor([window.start for window in windows], device=device)
    offsets = torch.tensor([0, *_offsets(windows)[:-1]], device=device)
    position = rows.block_start[:, None] + torch.arange(width, device=device)
    inside = position < rows.block_end[:, None]
    position = position.minimum((rows.block_end - 1)[:, None])
    in_window = position - starts[:, None]
    if shift:
        in_window = (in_window - 1).clamp(min=0)
    slot = rows.slot[:, None]
    return Grid(
        position=position,
        packed=offsets[:, None] + in_window,
        candidate=inside & table.masked[slot, position],
        hitting=table.hitting[slot, position],
    )


def _offsets(windows: Sequence[Window]) -> list[int]:
    total, ends = 0, []
    for window in windows:
        total += window.length
        ends.append(total)
    return ends


def _next_step(rows: SlotRows, grid: Grid) -> tuple[Tensor, Tensor]:
    """The block step to take and the time after it; a timed policy skips steps without a hit.

    Ancestral sampling commits each position independently in the step whose time interval
    holds its uniform hitting time (arXiv 2406.07524 with the coin tosses drawn ahead), so an
    interval without a hitting time needs no forward.
    """
    latest = grid.hitting.masked_fill(~grid.candidate, 0.0).amax(dim=1)
    hit = ((1.0 - latest) * rows.steps).ceil().to(torch.long).minimum(rows.steps)
    step = torch.where(rows.policy.timed, hit.maximum(rows.step + 1), rows.step + 1)
    return step, 1.0 - step / rows.steps


def _choose_blindly(
    rows: SlotRows, grid: Grid, at_least: Tensor, time: Tensor, max_gap: int
) -> tuple[Grid, Tensor]:
    """Reduce the candidates of blind slots to what they commit; all of that is then due."""
    # A timed slot commits what was hit; _next_step went to a step that has a hit.
    due = torch.where(rows.policy.timed, 1, at_least)
    chosen = choose_positions(
        rows.policy,
        _no_statistics(grid),
        grid.hitting,
        grid.candidate,
        at_least=due,
        time=time,
        max_gap=max_gap,
    )
    blind = rows.blind[:, None]
    candidate = torch.where(blind, chosen, grid.candidate)
    everything = torch.full_like(at_least, grid.candidate.shape[1])
    return replace(grid, candidate=candidate), torch.where(rows.blind, everything, at_least)


def _forward(
    model: Backbone, table: SlotTable, windows: Sequence[Window], facts: BatchFacts
) -> Tensor:
    """The hidden states (T, H) of all windows, packed one after another."""
    lengths = [window.length for window in windows]
    ids = torch.cat([table.ids[w.slot, w.start : w.stop] for w in windows])
    position_ids = torch.cat(
        [
            torch.arange(w.first_position_id, w.first_position_id + w.length, device=ids.device)
            for w in windows
        ]
    )
    caches = [window.cache for window in windows]
    if padding := max(facts.num_tokens - len(ids), 0):
        ids = torch.cat([ids, ids.new_zeros(padding)])
        position_ids = torch.cat([position_ids, position_ids.new_zeros(padding)])
        whole, rest = divmod(padding, _PADDING_SEGMENT)
        lengths += [_PADDING_SEGMENT] * whole + [rest] * bool(rest)
        caches += [None] * (len(lengths) - len(caches))
    plan = AttentionPlan(
        lengths=tuple(lengths), block_length=facts.block_length, caches=tuple(caches)
    )
    return model.backbone(ids[None], position_ids[None], plan)


def _look(head: Head, hidden: Tensor, grid: Grid, rows: SlotRows) -> RowStatistics:
    """Statistics (A, W) of the candidates that a seeing policy ranks."""
    row, column = (grid.candidate & ~rows.blind[:, None]).nonzero(as_tuple=True)
    seen = head.statistics(hidden[grid.packed[row, column]])
    statistics = _no_statistics(grid)
    statistics.log_top[row, column] = seen.log_top
    statistics.margin[row, column] = seen.margin
    statistics.entropy[row, column] = seen.entropy
    statistics.top_id[row, column] = seen.top_id
    return statistics


def _no_statistics(grid: Grid) -> RowStatistics:
    zeros = torch.zeros_like(grid.hitting)
    return RowStatistics(zeros, zeros.clone(), zeros.clone(), torch.zeros_like(grid.position))


def _draw_params(rows: SlotRows, row: Tensor, position: Tensor) -> DrawParams:
    in_completion = position - rows.prompt_length[row]
    return DrawParams(
        key=counter_keys(rows.seed[row], Purpose.DRAW, in_completion),
        temperature=rows.temperature[row],
        top_p=rows.top_p[row],
        top_k=rows.top_k[row],
    )
