"""A request in its slot, and how far it has come. Knows token ids and counts, and no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.draft import OpenedDraft
from diffusiongpt.engine.frame import CommittedToken, TokenChange, Usage
from diffusiongpt.engine.guides import Guide
from diffusiongpt.engine.holes import HoledText
from diffusiongpt.engine.layout import Window
from diffusiongpt.engine.logprobs import PositionLogprobs
from diffusiongpt.engine.pages import Page
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.text import TextCanvas

# A drawn token's probability may be less than float32 can hold; its logarithm stays finite.
LEAST_PROBABILITY = 1e-38


@dataclass(slots=True, kw_only=True)
class Running:
    """A request in its slot, and how far it has come.

    Attributes:
        filled: one byte per position of the completion, 1 once committed.
        settled: length of the prefix that stays as it is. stops: where end-of-text tokens are.
        block: index of the block, block_start..block_end in canvas positions.
        is_open: whether the block may still change.
        masked: positions still to fill, in the completion and in the block.
        step_base: budget spent by the blocks before this one; block_step: by this one.
        unsent: what changed since the last frame, position to token id or None for a mask.
            recorded: the tokens with their log-probabilities. num_recorded: commits so far.
            unsent_logprobs: those that were asked for, of the same tokens.
        cache: keys and values that are kept from step to step, if any are.
        page: where the path of its settled blocks ends in the shared pages, while it has one.
        cached_tokens: tokens of the prompt that came from shared pages.
        redone: positions of the draft that do not hold its token. num_looks: forwards before the
            first step, to see what of the draft to redo.
        guide: keeps the completion within its language, if it has one.
    """

    request: Request
    slot: int
    text: TextCanvas | HoledText | None
    filled: bytearray
    settled: int = 0
    stops: set[int] = field(default_factory=set)
    stopped_at: int | None = None
    is_open: bool = True
    block: int = 0
    block_start: int = 0
    block_end: int = 0
    masked: int = 0
    block_masked: int = 0
    block_step: int = 0
    block_steps: int = 0
    step_base: int = 0
    num_commit_steps: int = 0
    nfe: int = 0
    unsent: dict[int, int | None] = field(default_factory=dict)
    recorded: list[CommittedToken] = field(default_factory=list)
    num_recorded: int = 0
    unsent_logprobs: list[PositionLogprobs] = field(default_factory=list)
    cache: SlotCache | None = None
    page: Page | None = None
    cached_tokens: int = 0
    redone: set[int] = field(default_factory=set)
    num_looks: int = 0
    guide: Guide | None = None

    @property
    def draft(self) -> tuple[int, ...]:
        """The token ids that the completion began with."""
        return () if self.request.draft is None else self.request.draft.token_ids

    @property
    def block_span(self) -> tuple[int, int]:
        """The block, in positions of the completion."""
        origin = len(self.request.prompt)
        return self.block_start - origin, self.block_end - origin

    @property
    def is_due(self) -> bool:
        """Whether there is anything to do in the block: masks, or a draft that may be edited."""
        return self.block_masked > 0 or self._may_edit_draft(self.block_start)

    @property
    def has_blocks_left(self) -> bool:
        """Whether there is anything to do after the block."""
        return self.masked > self.block_masked or self._may_edit_draft(self.block_end)

    def _may_edit_draft(self, start: int) -> bool:
        """Whether some of the draft, from canvas position `start` on, may still be edited."""
        origin = len(self.request.prompt)
        return self.request.policy.revises and len(self.draft) > start - origin

    @property
    def most_steps_left(self) -> int:
        """Most steps that the block may still take: each commits something, but where policies
        toss coins or look again at what is filled."""
        policy = self.request.policy
        again = policy.tosses or policy.revises
        return max(self.request.steps if again else self.block_masked, 1)

    @property
    def max_tokens_ahead(self) -> int:
        """Most tokens that a forward to come computes of it."""
        blocks = self.request.blocks
        if self.cache is None or not self.cache.is_exact or self.request.may_pass_blocks:
            return blocks.max_window + self.request.num_shadows
        most = max(self.window().length, min(2 * blocks.block_length, blocks.max_window))
        return most + self.request.num_shadows

    @property
    def step(self) -> int:
        """Denoising steps so far, of `request.steps`."""
        return self.step_base + self.block_step

    def window(self) -> Window:
        """What the model computes of the canvas in the next step."""
        blocks = self.request.blocks
        start, stop = blocks.window(self.block_end)
        if self.cache is not None:
            start = self.cache.length
            stop = self.block_end if self.cache.extent else stop
        shadowed = self.request.policy.casts_shadows
        num_shadows = self.block_end - self.block_start if shadowed else 0
        return Window(
            self.slot,
            start,
            stop,
            self.cache,
            blocks.causal_block,
            self.block_start,
            num_shadows,
        )

    def note_forward(self) -> None:
        """Note that a forward is under way, which sees all settled blocks clean."""
        if self.cache is not None:
            self.cache.note_forward(self.block_start, self.request.blocks.block_length)

    def note_step(self, step: int, is_open: bool) -> None:
        """Note that a forward took the block to `step`."""
        self.block_step = step
        self.is_open = is_open
        self.nfe += 1

    def fill(self, changes: Sequence[TokenChange], stop_ids: frozenset[int]) -> None:
        """Note what changed: tokens committed, replaced, or taken back."""
        for position, token_id, _ in changes:
            is_filled = token_id is not None
            newly_filled = is_filled - self.filled[position]
            self.filled[position] = is_filled
            self.masked -= newly_filled
            self.block_masked -= newly_filled
            self._note_stop(position, token_id in stop_ids)
            self._note_draft(position, token_id)
            self.unsent[position] = token_id
        self._settle()

    def begin_with(self, draft: OpenedDraft, stop_ids: frozenset[int]) -> None:
        """Note what is kept of the draft, and what is masked."""
        for position in draft.kept:
            self._note_stop(position, draft.token_ids[position] in stop_ids)
        self.redone.update(draft.masked)
        self.unsent = dict.fromkeys(draft.masked)
        self.num_looks = draft.num_looks
        self._settle()

    def _note_draft(self, position: int, token_id: int | None) -> None:
        if position >= len(self.draft):
            return
        if token_id == self.draft[position]:
            self.redone.discard(position)
        else:
            self.redone.add(position)

    def _settle(self) -> None:
        next_mask = self.filled.find(0, self.settled)
        end = len(self.filled) if next_mask < 0 else next_mask
        self.settled = end if self.editable_from is None else min(end, self.editable_from)

    def _note_stop(self, position: int, is_stop: bool) -> None:
        if self.request.params.ignore_eos:
            return
        if is_stop:
            self.stops.add(position)
            self.stopped_at = (
                position if self.stopped_at is None else min(position, self.stopped_at)
            )
        elif position in self.stops:
            self.stops.remove(position)
            self.stopped_at = min(self.stops, default=None)

    @property
    def editable_from(self) -> int | None:
        """The first position whose token may still be replaced or taken back, if any may."""
        if self.is_open and self.request.policy.revises:
            return self.block_start - len(self.request.prompt)
        if self._may_edit_draft(self.block_end):
            return self.block_end - len(self.request.prompt)
        return None

    def record(self, changes: Sequence[TokenChange]) -> None:
        """Keep how the tokens of this step came about, for the next frame."""
        gone = {
            position
            for position, token_id, _ in changes
            if token_id is None or self.is_past_end(position)
        }
        self._forget(gone)
        for position, token_id, confidence in changes:
            if token_id is None or position in gone:
                continue
            log_prob = math.log(max(confidence, LEAST_PROBABILITY))
            self.recorded.append(
                CommittedToken(token_id, position, log_prob, self.step, self.num_recorded)
            )
            self.num_recorded += 1

    def _forget(self, positions: set[int]) -> None:
        """Drop what was recorded of positions that nobody reads any more."""
        if positions and self.request.policy.revises:
            self.recorded = [each for each in self.recorded if each.position not in positions]
            self.unsent_logprobs = [
                each for each in self.unsent_logprobs if each.position not in positions
            ]

    def is_past_end(self, position: int) -> bool:
        """Whether what stands at a position follows the end of a text: no reader sees it, and
        nobody chose it."""
        return self.guide is not None and self.guide.is_past_end(position)

    def take_recorded(self) -> tuple[CommittedToken, ...]:
        """What was recorded since the last frame."""
        taken = tuple(self.recorded)
        self.recorded.clear()
        return taken

    @property
    def has_ended(self) -> bool:
        """Whether everything up to the first end-of-text token is committed."""
        return self.stopped_at is not None and self.settled > self.stopped_at

    def usage(self) -> Usage:
        """What the request has cost so far."""
        return Usage(
            prompt_tokens=self.request.num_prompt_tokens,
            completion_tokens=self._count_tokens(),
            steps=self.num_commit_steps,
            nfe=self.nfe + self.num_looks,
            cached_tokens=self.cached_tokens,
            accepted_tokens=(accepted := self._count_accepted()),
            rejected_tokens=len(self.draft) - accepted,
            grammar_seconds=0.0 if self.guide is None else self.guide.seconds,
        )

    def _count_tokens(self) -> int:
        """Tokens of the answer: up to its end, or all that were filled. Those of a scaffold are the
        answer's, too, and what its values leave of their room is not."""
        if self.request.is_scaffold:
            return sum(
                is_filled and not self.is_past_end(position)
                for position, is_filled in enumerate(self.filled)
            )
        if self.has_ended and self.stopped_at is not None:
            return self.stopped_at + 1
        return self.request.canvas.num_masked - self.masked

    def _count_accepted(self) -> int:
        """Tokens of the draft that are at their place in the content."""
        end = self.text.end if self.text is not None else self.stopped_at
        inside = range(len(self.draft) if end is None else min(end, len(self.draft)))
        return sum(position not in self.redone for position in inside)
