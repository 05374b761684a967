"""Denoising steps recorded whole, from the tokens to the commits, and replayed.

A step that computes the whole grid (`step.py`) asks the device for nothing and tells it nothing:
it is a function of the slots' buffers, of where the packed tokens lie and of who goes. Which
kernels it has, and how large, depends on its *kind* alone: the facts of the batch, how many slots
it has and how many tokens. So a kind is recorded once, reads its layout from buffers that stay
where they are, and is replayed for every batch of that kind.

Kinds come and go with the requests, so they are recorded while others wait: only those that are met
again and again, and no more than a fixed number, of which the least recently used goes.

Legend: A slots of the batch, T packed tokens.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.batch_facts import BatchFacts
from diffusiongpt.engine.captured import CapturedForward
from diffusiongpt.engine.commits import Commits
from diffusiongpt.engine.layout import Layout
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.sampling import Head
from diffusiongpt.engine.slots import SlotTable
from diffusiongpt.engine.step import denoise

# A recording takes about as long as so many steps, so it is made of kinds that had as many: what
# is wasted on those that never come again is then no more than what they took anyway.
STEPS_BEFORE = 6
MOST_RECORDINGS = 64
# Kinds whose steps are counted, recorded or not.
_MOST_KINDS = 256


class Kind(NamedTuple):
    """What decides which kernels a step has: `num_tokens` are those of a bucket."""

    facts: BatchFacts
    num_slots: int
    num_tokens: int


class CapturedSteps:
    """The recordings of steps, by their kind; none where forwards are not recorded."""

    def __init__(self, model: LoadedModel, head: Head, table: SlotTable) -> None:
        self._model = model
        self._head = head
        self._table = table
        self._recordings: OrderedDict[Kind, CapturedStep] = OrderedDict()
        self._num_steps: OrderedDict[Kind, int] = OrderedDict()
        self._has_failed = False

    def find(self, layout: Layout, facts: BatchFacts) -> CapturedStep | None:
        """The recording that a step can be replayed from, which may be made now; None where the
        step must run eagerly."""
        forward = self._model.captured
        if forward is None or not facts.whole_grid:
            return None
        num_tokens = forward.bucket_of(layout.plan)
        if num_tokens is None:
            return None
        kind = Kind(facts, len(layout.slot), num_tokens)
        if kind in self._recordings:
            self._recordings.move_to_end(kind)
            return self._recordings[kind]
        return self._record(kind, layout, forward) if self._is_worth_it(kind) else None

    def _is_worth_it(self, kind: Kind) -> bool:
        """Whether a kind had steps enough; counts this one."""
        self._num_steps[kind] = self._num_steps.pop(kind, 0) + 1
        if len(self._num_steps) > _MOST_KINDS:
            self._num_steps.popitem(last=False)
        return self._num_steps[kind] > STEPS_BEFORE and not self._has_failed

    def _record(self, kind: Kind, layout: Layout, forward: CapturedForward) -> CapturedStep | None:
        try:
            recorded = CapturedStep(self._model, self._head, self._table, kind, layout, forward)
        except Exception as error:
            # Nobody went, so nothing is lost: the steps that are not recorded run eagerly.
            self._has_failed = True
            reason = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                f"no more steps are recorded, because one could not be on this "
                f"{self._model.device.type}: {type(error).__name__}: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        del self._num_steps[kind]
        self._recordings[kind] = recorded
        if len(self._recordings) > MOST_RECORDINGS:
            self._recordings.popitem(last=False)
        return recorded


class CapturedStep:
    """The recording of one kind of step."""

    def __init__(
        self,
        model: LoadedModel,
        head: Head,
        table: SlotTable,
        kind: Kind,
        layout: Layout,
        forward: CapturedForward,
    ) -> None:
        self._model = model
        self._head = head
        self._table = table
        self._kind = kind
        self._inside = _ModelInside(model, forward, kind.num_tokens)
        self._layout = layout.padded(kind.num_tokens, table.blank).copy()
        self._held: Layout | None = None
        # Nobody goes while it is recorded: however often it runs, the slots stay as they are.
        self._going = torch.zeros_like(layout.slot, dtype=torch.bool)
        self._hold(layout)
        self._replay = forward.recorder.record(self._run)
        self._inside.segments.begin()  # what was made on the way need not be kept

    def step(self, layout: Layout, going: Tensor) -> Commits:
        """Take the slots that are `going` (A,) one step further; what that changed, in memory of
        its own."""
        if layout is not self._held:
            self._hold(layout)
        self._going.copy_(going)
        self._replay()
        self._model.note_replay(layout.plan.num_tokens, self._num_head_rows)
        return self._commits.copy()

    def _hold(self, layout: Layout) -> None:
        padded = layout.padded(self._kind.num_tokens, self._table.blank)
        self._layout.load(padded)
        self._inside.segments.load(padded.plan)
        self._held = layout

    def _run(self) -> None:
        """What is recorded; the work is counted when it is replayed."""
        before = self._model.num_head_rows
        self._commits = denoise(
            self._inside, self._head, self._table, self._layout, self._kind.facts, self._going
        )
        self._num_head_rows = self._model.num_head_rows - before
        self._model.num_head_rows = before


class _ModelInside:
    """The model within the recording of a step: its forward of so many tokens, who sees whom in
    segments of its own, and nothing of it counted."""

    def __init__(self, model: LoadedModel, forward: CapturedForward, num_tokens: int) -> None:
        self.logit_shift = model.logit_shift
        self.segments = forward.new_segments(num_tokens)
        self._forward = forward.forward

    def backbone(
        self, ids: Tensor, position_ids: Tensor, plan: AttentionPlan, wanted: Tensor | None = None
    ) -> Tensor:
        """See `packing.Backbone`; of the plan the segments hold what there is to know."""
        self.segments.begin()
        return self._forward(ids, position_ids, self.segments, wanted)
