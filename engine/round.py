"""The steps of a batch from one look of the host to the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffusiongpt.engine.batch_facts import BatchFacts
from diffusiongpt.engine.captured_step import CapturedSteps
from diffusiongpt.engine.commits import Commits
from diffusiongpt.engine.frontier import Frontier
from diffusiongpt.engine.layout import Layout, Window, lay_out
from diffusiongpt.engine.packing import Backbone
from diffusiongpt.engine.sampling import Head
from diffusiongpt.engine.slots import SlotTable
from diffusiongpt.engine.step import denoise


class Round:
    """Starts the steps of a batch one after another, and reads what they changed when all of them
    were started; a slot whose block is complete waits for the others.

    Args:
        captured: replays the steps that it has a recording for; all others run eagerly.
        frontier: of the slots that a constraint guides, if there are any.
    """

    def __init__(
        self,
        model: Backbone,
        head: Head,
        table: SlotTable,
        captured: CapturedSteps,
        facts: BatchFacts,
        frontier: Frontier | None,
    ) -> None:
        self._model = model
        self._head = head
        self._table = table
        self._captured = captured
        self._facts = facts
        self._frontier = frontier
        self._windows: Sequence[Window] = ()
        self._layout: Layout | None = None
        self._started: list[Commits] = []

    @torch.inference_mode()
    def start(self, windows: Sequence[Window]) -> None:
        """Start the next step, of those whom the one before left something to do."""
        layout = self._lay_out(windows)
        everybody = torch.ones_like(layout.slot, dtype=torch.bool)
        going = self._started[-1].is_open if self._started else everybody
        recorded = self._captured.find(layout, self._facts)
        if recorded is not None:
            commits = recorded.step(layout, going)
        else:
            commits = denoise(
                self._model, self._head, self._table, layout, self._facts, going, self._frontier
            )
        self._started.append(commits)

    def read(self) -> list[Commits]:
        """What each step changed, on the host; waits for the device."""
        return [commits.read() for commits in self._started]

    def _lay_out(self, windows: Sequence[Window]) -> Layout:
        """The layout of these windows, which often are those of the step before."""
        if self._layout is None or windows != self._windows:
            layout = lay_out(self._table, windows)
            self._layout = layout.padded(self._facts.num_tokens, self._table.blank)
            self._windows = windows
        return self._layout
