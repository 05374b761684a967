"""One denoising step for every slot of a batch: plan, forward, choose, draw, commit, revise.

The batch is one row of packed tokens without padding. The head runs only on rows that a policy
must look at or that are committed; a policy that ranks by hitting time alone is *blind*: what
it commits is known before the forward, so nothing else of its canvas goes through the head.

Legend: A slots of the batch, W positions of the widest block, T packed tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.bias import BatchBias
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.commit import choose_positions, commits_due
from diffusiongpt.engine.frontier import Frontier
from diffusiongpt.engine.grid import (
    Grid,
    Window,
    block_grid,
    next_step,
    step_coins,
    with_coins,
)
from diffusiongpt.engine.history import credit_tokens, is_steady
from diffusiongpt.engine.randomness import Purpose, counter_keys
from diffusiongpt.engine.revise import (
    choose_doubted,
    choose_edits,
    choose_kept,
    remask_chances,
    state_keys,
    toss_remasks,
    was_seen,
)
from diffusiongpt.engine.sampling import DrawParams, Draws, Head, RowStatistics
from diffusiongpt.engine.slots import SlotRows, SlotTable


class Backbone(Protocol):
    """The part of a loaded model that a step needs."""

    @property
    def logit_shift(self) -> bool:
        """Whether the logits at a position predict the next one."""
        ...

    def backbone(
        self, ids: Tensor, position_ids: Tensor, plan: AttentionPlan, wanted: Tensor | None = None
    ) -> Tensor:
        """(1, T) ids and positions to (T, H) hidden states, or to those of `wanted` (R,) tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """What the host knows of a batch, so that the step need not ask the device.

    Attributes:
        width: positions of the widest block. max_gap: the largest gap.
        any_blind: whether some policy ranks by hitting time alone. any_seeing: whether some
            policy looks at distributions. any_steady, any_credit: whether some policy asks for
            the same top token in several steps; whether some credits it.
        any_tossing, any_revising: whether some policy decides by coins of every step; whether
            some revises what is filled.
        any_random: whether some slot draws with a temperature above 0.
        any_truncated: whether some slot draws with top_p, top_k or min_p.
        num_biased: longest `logit_bias`. num_penalized: longest completion with a penalty.
        num_top: most likely tokens to hand out with each commit, None if nobody asks.
        num_tokens: pad the forward to this many tokens, or 0.
    """

    width: int
    max_gap: int
    any_blind: bool
    any_seeing: bool
    any_steady: bool
    any_credit: bool
    any_tossing: bool
    any_revising: bool
    any_random: bool
    any_truncated: bool
    num_tokens: int
    num_biased: int = 0
    num_penalized: int = 0
    num_top: int | None = None


@dataclass(frozen=True, slots=True)
class Commits:
    """What one step changed: (N,) each, and where that leaves each slot: (A,) each.

    `row` indexes the batch's slots; `position` is a canvas position; `confidence` is the
    token's probability at temperature 1. `draws` has its logarithm, and the most likely tokens
    if someone asks. The mask came back to `remasked_position` of `remasked_row`. `step` is the
    block step reached, and `is_open` says whether the block may still change.
    """

    row: Tensor
    position: Tensor
    token_id: Tensor
    confidence: Tensor
    draws: Draws
    remasked_row: Tensor
    remasked_position: Tensor
    step: Tensor
    is_open: Tensor


@torch.inference_mode()
def denoise(
    model: Backbone,
    head: Head,
    table: SlotTable,
    windows: Sequence[Window],
    facts: BatchFacts,
    frontier: Frontier | None = None,
) -> Commits:
    """Take every slot of the batch one denoising step further.

    Args:
        frontier: of the slots that a constraint guides, if there are any.
    """
    rows = table.rows([window.slot for window in windows])
    grid = block_grid(table, rows, windows, facts.width, shift=model.logit_shift)
    step, time = next_step(rows, grid)
    at_least = commits_due(grid.candidate.sum(dim=1), rows.steps - rows.step)
    if facts.any_tossing:
        grid, time = with_coins(rows, grid, step, time)
    if facts.any_blind:
        grid, at_least = _choose_blindly(rows, grid, at_least, time, facts.max_gap, frontier)
    wanted = grid.candidate | grid.filled & rows.looks_back[:, None]
    hidden, grid = _forward(model, table, windows, facts, grid, wanted)
    bias = table.bias(rows, num_biased=facts.num_biased, num_penalized=facts.num_penalized)
    bias = bias if frontier is None else replace(bias, frontier=frontier)
    statistics = _no_statistics(grid)
    if facts.any_seeing:
        statistics = _look(head, hidden, grid, rows, bias)
    if facts.any_credit:
        bias = replace(bias, of_positions=credit_tokens(table, rows, grid, statistics))
        statistics = _look(head, hidden, grid, rows, bias)
    chosen = grid.candidate
    if facts.any_seeing:
        steady = is_steady(table, rows, grid, statistics) if facts.any_steady else None
        chosen = _choose(rows, grid, statistics, at_least, time, facts.max_gap, steady)
    edited = remasked = torch.zeros_like(chosen)
    if facts.any_revising:
        chosen, edited, remasked = _revise(table, rows, grid, statistics, chosen, step)
    if frontier is not None:
        chosen = frontier.cut(chosen)
        if facts.any_revising:
            # First what is taken back: it leaves more room for what is committed.
            frontier.release(remasked)
    row, column = (chosen | edited).nonzero(as_tuple=True)
    is_edit = edited[row, column]
    draws = _draw(head, hidden, table, rows, grid, facts, bias, statistics, row, column, is_edit)
    if frontier is not None:
        sureness = statistics.log_top[row, column]
        accepted = frontier.accept(row, column, draws.token_id, sureness)
        chosen[row[~accepted], column[~accepted]] = False
        row, column, draws = row[accepted], column[accepted], draws.at(accepted)
    position = grid.position[row, column]
    confidence = draws.log_prob.exp()
    table.write(rows.slot[row], position, draws.token_id, confidence)
    is_open, round = (grid.masked & ~chosen | remasked).any(dim=1), rows.round
    remasked_row = remasked_position = row[:0]
    if facts.any_revising:
        remasked_row, column = remasked.nonzero(as_tuple=True)
        remasked_position = grid.position[remasked_row, column]
        table.mask_again(rows.slot[remasked_row], remasked_position)
        is_open, round = _review(table, rows, grid, is_open, step)
    table.set_progress(rows.slot, step, round, chosen.sum(dim=1))
    return Commits(
        row=row,
        position=position,
        token_id=draws.token_id,
        confidence=confidence,
        draws=draws,
        remasked_row=remasked_row,
        remasked_position=remasked_position,
        step=step,
        is_open=is_open,
    )


def _choose_blindly(
    rows: SlotRows,
    grid: Grid,
    at_least: Tensor,
    time: Tensor,
    max_gap: int,
    frontier: Frontier | None,
) -> tuple[Grid, Tensor]:
    """Reduce the candidates of blind slots to what they commit; all of that is then due."""
    # A timed slot commits what was hit; _next_step went to a step that has a hit.
    # Coins may hit nothing.
    due = torch.where(rows.policy.timed, 1 - rows.revision.tosses.long(), at_least)
    chosen = _choose(rows, grid, _no_statistics(grid), due, time, max_gap)
    chosen = chosen if frontier is None else frontier.cut(chosen)
    blind = rows.blind[:, None]
    candidate = torch.where(blind, chosen, grid.candidate)
    everything = torch.full_like(at_least, grid.candidate.shape[1])
    return replace(grid, candidate=candidate), torch.where(rows.blind, everything, at_least)


def _forward(
    model: Backbone,
    table: SlotTable,
    windows: Sequence[Window],
    facts: BatchFacts,
    grid: Grid,
    wanted: Tensor,
) -> tuple[Tensor, Grid]:
    """The hidden states (R, H) of all `wanted` positions (A, W), and a grid whose `packed` says
    where each one's lies; of all tokens where forwards are padded to be alike."""
    segments = [segment for window in windows for segment in _segments(table, window)]
    ids, position_ids = (torch.cat(each) for each in zip(*(s[:2] for s in segments), strict=True))
    plan = AttentionPlan(
        lengths=tuple(len(segment.ids) for segment in segments),
        block_lengths=tuple(segment.block_length for segment in segments),
        caches=tuple(segment.cache for segment in segments),
        shadows=tuple(segment.shadows for segment in segments),
    ).padded(facts.num_tokens)
    if facts.num_tokens:
        padding = plan.num_tokens - len(ids)
        ids, position_ids = F.pad(ids, (0, padding)), F.pad(position_ids, (0, padding))
        return model.backbone(ids[None], position_ids[None], plan), grid
    tokens = grid.packed[wanted]
    packed = torch.zeros_like(grid.packed)
    packed[wanted] = torch.arange(len(tokens), device=packed.device)
    hidden = model.backbone(ids[None], position_ids[None], plan, tokens)
    return hidden, replace(grid, packed=packed)


class _Segment(NamedTuple):
    """Neighbours in the row of packed tokens, (L,) each, and what they see."""

    ids: Tensor
    position_ids: Tensor
    block_length: int | None
    cache: SlotCache | None = None
    shadows: int | None = None


def _segments(table: SlotTable, window: Window) -> Iterator[_Segment]:
    """A window's canvas, and the shadows of its block if it has some."""
    ids = table.ids[window.slot, window.start : window.stop]
    first = window.first_position_id
    position_ids = torch.arange(first, first + window.length, device=ids.device)
    yield _Segment(ids, position_ids, window.block_length, window.cache)
    if window.num_shadows:
        place = window.shadows_from - window.start
        stop = place + window.num_shadows
        masks = torch.full_like(ids[:1], table.mask_token_id).expand(window.num_shadows)
        yield _Segment(masks, position_ids[place:stop], window.block_length, shadows=place)


def _look(head: Head, hidden: Tensor, grid: Grid, rows: SlotRows, bias: BatchBias) -> RowStatistics:
    """Statistics (A, W) of the candidates that a seeing policy ranks, and of what is filled
    where a policy looks back."""
    wanted = grid.candidate & ~rows.blind[:, None] | grid.filled & rows.looks_back[:, None]
    row, column = wanted.nonzero(as_tuple=True)
    edits = rows.revision.log_edit_threshold < torch.inf
    may_delete = grid.filled[row, column] & edits[row]
    seen = head.statistics(
        hidden[grid.packed[row, column]],
        grid.held[row, column],
        bias.at(row, column),
        may_delete,
    )
    statistics = _no_statistics(grid)
    statistics.log_top[row, column] = seen.log_top
    statistics.margin[row, column] = seen.margin
    statistics.entropy[row, column] = seen.entropy
    statistics.top_id[row, column] = seen.top_id
    statistics.log_held[row, column] = seen.log_held
    return statistics


def _no_statistics(grid: Grid) -> RowStatistics:
    zeros = torch.zeros_like(grid.hitting)
    none = torch.zeros_like(grid.position)
    return RowStatistics(zeros, zeros.clone(), zeros.clone(), none, zeros.clone())


def _choose(
    rows: SlotRows,
    grid: Grid,
    statistics: RowStatistics,
    at_least: Tensor,
    time: Tensor,
    max_gap: int,
    steady: Tensor | None = None,
) -> Tensor:
    """The candidates to commit, (A, W) bool."""
    return choose_positions(
        rows.policy,
        statistics,
        grid.hitting,
        grid.candidate,
        at_least=at_least,
        time=time,
        max_gap=max_gap,
        steady=steady,
    )


def _draw(
    head: Head,
    hidden: Tensor,
    table: SlotTable,
    rows: SlotRows,
    grid: Grid,
    facts: BatchFacts,
    bias: BatchBias,
    statistics: RowStatistics,
    row: Tensor,
    column: Tensor,
    is_edit: Tensor,
) -> Draws:
    """A token for each position (row, column) of the grid, (N,) each; the most likely ones are
    known where a look was taken and nobody draws at random."""
    if not (facts.any_random or facts.any_blind or facts.num_top is not None):
        return Draws(statistics.top_id[row, column], statistics.log_top[row, column])
    params = _draw_params(table, rows, row, grid.position[row, column], is_edit)
    return head.draw(
        hidden[grid.packed[row, column]],
        params,
        truncate=facts.any_truncated,
        bias=bias.at(row, column),
        may_delete=is_edit,
        num_top=facts.num_top,
    )


def _draw_params(
    table: SlotTable, rows: SlotRows, row: Tensor, position: Tensor, is_edit: Tensor
) -> DrawParams:
    """How the tokens of positions (N,) of batch rows (N,) are drawn; an edit takes the best."""
    in_completion = position - rows.prompt_length[row]
    visit = table.visit[rows.slot[row], position]
    return DrawParams(
        key=counter_keys(rows.seed[row], Purpose.DRAW, in_completion, visit),
        temperature=rows.temperature[row].masked_fill(is_edit, 0.0),
        top_p=rows.top_p[row],
        top_k=rows.top_k[row],
        min_p=rows.min_p[row],
    )


def _revise(
    table: SlotTable,
    rows: SlotRows,
    grid: Grid,
    statistics: RowStatistics,
    chosen: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is committed, edited and masked again, (A, W) bool each; `chosen` changes only where
    all positions are planned together."""
    kept = choose_kept(statistics, grid.masked, grid.filled, step, rows.steps)
    planned = rows.revision.planned[:, None]
    edited = choose_edits(rows.revision, statistics, grid.held, grid.filled)
    coin = step_coins(rows, grid, Purpose.REMASK, step)
    chance, _ = remask_chances(rows.revision, step, rows.steps)
    confidence = table.confidence[rows.slot[:, None], grid.position]
    remasked = toss_remasks(rows.revision, chance, confidence, grid.filled, coin)
    is_full = ~grid.masked.any(dim=1)
    # One fewer than the step before committed, so that the block fills.
    may_remask = (step < rows.steps) & (chosen.sum(dim=1) > 1)
    most = torch.where(may_remask, rows.num_committed - 1, 0)
    remasked |= choose_doubted(rows.revision, statistics, grid.filled, is_full, most)
    remasked |= grid.filled & planned & ~kept
    chosen = torch.where(planned, kept & grid.masked, chosen)
    return chosen, edited & ~remasked, remasked


def _review(
    table: SlotTable, rows: SlotRows, grid: Grid, has_masks: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether each block may still change, and how often it was looked at when it was full.

    A full block is looked at again until its rounds are used or it comes back to a state that
    it was in before: one that did not change, or the start of a cycle. Where coins are tossed,
    it stays open for all its steps.
    """
    round = rows.round + ~grid.masked.any(dim=1)
    key = state_keys(table.ids[rows.slot[:, None], grid.position], grid.inside)
    came_back = was_seen(key, table.seen[rows.slot], round)
    column = round.minimum(rows.revision.max_rounds)
    table.seen[rows.slot, column] = torch.where(has_masks, table.seen[rows.slot, column], key)
    again = (round < rows.revision.max_rounds) & ~came_back
    tosses = rows.revision.tosses & (step < rows.steps)
    return has_masks | again | tosses, round
