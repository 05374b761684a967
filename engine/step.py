"""One denoising step for every slot of a batch: plan, forward, choose, draw, commit, revise.

The batch is one row of packed tokens without padding. The head runs only on rows that a policy
must look at or that are committed; a policy that ranks by hitting time alone is *blind*: what
it commits is known before the forward, so nothing else of its canvas goes through the head.

Legend: A slots of the batch, W positions of the widest block, T packed tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusiongpt.engine.batch_facts import BatchFacts
from diffusiongpt.engine.bias import BatchBias
from diffusiongpt.engine.cells import Cells
from diffusiongpt.engine.commit import choose_positions, commits_due
from diffusiongpt.engine.commits import Commits
from diffusiongpt.engine.frontier import Frontier
from diffusiongpt.engine.grid import Grid, block_grid, next_step, with_coins
from diffusiongpt.engine.history import credit_tokens, is_steady
from diffusiongpt.engine.layout import Layout
from diffusiongpt.engine.packing import Backbone, run_backbone
from diffusiongpt.engine.randomness import Purpose, counter_keys
from diffusiongpt.engine.rows import DrawParams, Draws, RowStatistics
from diffusiongpt.engine.sampling import Head
from diffusiongpt.engine.second_look import review, revise
from diffusiongpt.engine.slot_rows import SlotRows
from diffusiongpt.engine.slots import SlotTable


@dataclass(frozen=True, slots=True)
class _Batch:
    """The slots of a step, and what decides about them: of use to every part of it."""

    head: Head
    table: SlotTable
    rows: SlotRows
    facts: BatchFacts
    frontier: Frontier | None


@torch.inference_mode()
def denoise(
    model: Backbone,
    head: Head,
    table: SlotTable,
    layout: Layout,
    facts: BatchFacts,
    going: Tensor,
    frontier: Frontier | None = None,
) -> Commits:
    """Take every slot of the batch one denoising step further.

    But for constraints, and for positions that are counted where the grid is not computed whole, it
    is a function of tensors and facts alone, so it can be recorded (`captured_step.py`).

    Args:
        going: (A,) bool, the slots that take part; the others stay as they are.
        frontier: of the slots that a constraint guides, if there are any.
    """
    rows = table.rows(layout.slot)
    batch = _Batch(head, table, rows, facts, frontier)
    grid = block_grid(table, rows, layout, facts.width, shift=model.logit_shift, going=going)
    step, time = next_step(rows, grid)
    grid, at_least, time = _plan(batch, grid, step, time)
    hidden, grid = run_backbone(model, table, rows, layout, facts, grid)
    statistics, bias = _look(batch, hidden, grid)
    chosen, edited, remasked = _choose(batch, grid, statistics, at_least, step, time)
    cells = Cells.of(chosen | edited, whole_grid=facts.whole_grid)
    draws = _draw(batch, hidden, grid, bias, statistics, cells, edited)
    if frontier is not None:
        chosen, cells, draws = _accept(frontier, chosen, cells, draws, statistics)
    return _commit(batch, grid, going, step, chosen, remasked, cells, draws)


def _plan(batch: _Batch, grid: Grid, step: Tensor, time: Tensor) -> tuple[Grid, Tensor, Tensor]:
    """The candidates with their hitting times, how many of each slot are due, (A,), and the time
    after the step, (A,)."""
    rows, facts = batch.rows, batch.facts
    at_least = commits_due(grid.candidate.sum(dim=1), rows.steps - rows.step)
    if facts.any_tossing:
        grid, time = with_coins(rows, grid, step, time)
    if facts.any_blind:
        grid, at_least = _choose_blindly(batch, grid, at_least, time)
    return grid, at_least, time


def _choose_blindly(
    batch: _Batch, grid: Grid, at_least: Tensor, time: Tensor
) -> tuple[Grid, Tensor]:
    """Reduce the candidates of blind slots to what they commit; all of that is then due."""
    rows = batch.rows
    # A timed slot commits what was hit: `next_step` went to a step that has a hit. Coins may hit
    # nothing.
    due = torch.where(rows.policy.timed, 1 - rows.revision.tosses.long(), at_least)
    chosen = _choose_candidates(batch, grid, _no_statistics(grid), due, time)
    chosen = chosen if batch.frontier is None else batch.frontier.cut(chosen)
    blind = rows.blind[:, None]
    candidate = torch.where(blind, chosen, grid.candidate)
    everything = torch.full_like(at_least, grid.candidate.shape[1])
    return replace(grid, candidate=candidate), torch.where(rows.blind, everything, at_least)


def _look(batch: _Batch, hidden: Tensor, grid: Grid) -> tuple[RowStatistics, BatchBias]:
    """The statistics (A, W) that policies go by, and what is added to the logits of this step."""
    rows, facts, frontier = batch.rows, batch.facts, batch.frontier
    bias = batch.table.bias(rows, num_biased=facts.num_biased, num_penalized=facts.num_penalized)
    bias = bias if frontier is None else replace(bias, frontier=frontier)
    statistics = _no_statistics(grid)
    if facts.any_seeing:
        statistics = _measure(batch, hidden, grid, bias)
    if facts.any_credit:
        credit = credit_tokens(batch.table, rows, grid, statistics, whole_grid=facts.whole_grid)
        bias = replace(bias, of_positions=credit)
        statistics = _measure(batch, hidden, grid, bias)
    return statistics, bias


def _measure(batch: _Batch, hidden: Tensor, grid: Grid, bias: BatchBias) -> RowStatistics:
    """Statistics (A, W) of the candidates that a seeing policy ranks, and of what is filled
    where a policy looks back."""
    rows = batch.rows
    wanted = grid.candidate & ~rows.blind[:, None] | grid.filled & rows.looks_back[:, None]
    cells = Cells.of(wanted, whole_grid=batch.facts.whole_grid)
    edits = rows.revision.log_edit_threshold < torch.inf
    may_delete = cells.of_grid(grid.filled) & edits[cells.row]
    seen = batch.head.statistics(
        hidden[cells.of_grid(grid.packed)],
        cells.of_grid(grid.held),
        bias.at(cells.row, cells.column),
        may_delete,
    )
    statistics = _no_statistics(grid)
    for of_grid, of_cells in zip(statistics.columns(), seen.columns(), strict=True):
        of_grid[cells.row, cells.column] = cells.or_else(of_cells, 0)
    return statistics


def _no_statistics(grid: Grid) -> RowStatistics:
    """Statistics (A, W) of positions at which nobody looks."""
    zeros = torch.zeros_like(grid.hitting)
    none = torch.zeros_like(grid.position)
    return RowStatistics(zeros, zeros.clone(), zeros.clone(), none, zeros.clone())


def _choose(
    batch: _Batch,
    grid: Grid,
    statistics: RowStatistics,
    at_least: Tensor,
    step: Tensor,
    time: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is committed, edited and masked again, (A, W) bool each."""
    table, rows, facts, frontier = batch.table, batch.rows, batch.facts, batch.frontier
    chosen = grid.candidate
    if facts.any_seeing:
        steady = None
        if facts.any_steady:
            steady = is_steady(table, rows, grid, statistics, whole_grid=facts.whole_grid)
        chosen = _choose_candidates(batch, grid, statistics, at_least, time, steady)
    edited = remasked = torch.zeros_like(chosen)
    if facts.any_revising:
        chosen, edited, remasked = revise(table, rows, grid, statistics, chosen, step)
    if frontier is not None:
        chosen = frontier.cut(chosen)
        if facts.any_revising:
            # First what is taken back: it leaves more room for what is committed.
            frontier.release(remasked)
    return chosen, edited, remasked


def _choose_candidates(
    batch: _Batch,
    grid: Grid,
    statistics: RowStatistics,
    at_least: Tensor,
    time: Tensor,
    steady: Tensor | None = None,
) -> Tensor:
    """The candidates to commit, (A, W) bool."""
    return choose_positions(
        batch.rows.policy,
        statistics,
        grid.hitting,
        grid.candidate,
        at_least=at_least,
        time=time,
        max_gap=batch.facts.max_gap,
        steady=steady,
    )


def _draw(
    batch: _Batch,
    hidden: Tensor,
    grid: Grid,
    bias: BatchBias,
    statistics: RowStatistics,
    cells: Cells,
    edited: Tensor,
) -> Draws:
    """A token for each of the cells, (N,); the most likely ones are known where a look was taken
    and nobody draws at random."""
    facts = batch.facts
    if not (facts.any_random or facts.any_blind or facts.num_top is not None):
        return Draws(cells.of_grid(statistics.top_id), cells.of_grid(statistics.log_top))
    is_edit = cells.of_grid(edited)
    params = _draw_params(batch.table, batch.rows, cells.row, cells.of_grid(grid.position), is_edit)
    return batch.head.draw(
        hidden[cells.of_grid(grid.packed)],
        params,
        truncate=facts.any_truncated,
        bias=bias.at(cells.row, cells.column),
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


def _accept(
    frontier: Frontier, chosen: Tensor, cells: Cells, draws: Draws, statistics: RowStatistics
) -> tuple[Tensor, Cells, Draws]:
    """What constraints leave of the cells that were drawn, and of what was chosen."""
    row, column = cells.row, cells.column
    accepted = frontier.accept(row, column, draws.token_id, cells.of_grid(statistics.log_top))
    chosen[row[~accepted], column[~accepted]] = False
    return chosen, Cells(row[accepted], column[accepted]), draws.at(accepted)


def _commit(
    batch: _Batch,
    grid: Grid,
    going: Tensor,
    step: Tensor,
    chosen: Tensor,
    remasked: Tensor,
    cells: Cells,
    draws: Draws,
) -> Commits:
    """Write what was drawn, put masks back, and note how far that brings each slot."""
    table, rows, facts = batch.table, batch.rows, batch.facts
    position, confidence = cells.of_grid(grid.position), draws.log_prob.exp()
    place = cells.or_else(position, table.nowhere)
    table.write(rows.slot[cells.row], place, draws.token_id, confidence)
    is_open, round = (grid.masked & ~chosen | remasked).any(dim=1), rows.round
    again = Cells(cells.row[:0], cells.column[:0])
    if facts.any_revising:
        again = Cells.of(remasked, whole_grid=facts.whole_grid)
        place = again.or_else(again.of_grid(grid.position), table.nowhere)
        table.mask_again(rows.slot[again.row], place)
        is_open, round = review(table, rows, grid, is_open, step, going)
    step, round = torch.where(going, step, rows.step), torch.where(going, round, rows.round)
    num_committed = torch.where(going, chosen.sum(dim=1), rows.num_committed)
    table.set_progress(rows.slot, step, round, num_committed)
    return Commits(
        row=cells.row,
        position=position,
        token_id=draws.token_id,
        confidence=confidence,
        draws=draws,
        remasked_row=again.row,
        remasked_position=again.of_grid(grid.position),
        step=step,
        is_open=is_open & going,
        went=going,
        meant=cells.meant,
        remask_meant=again.meant,
    )
