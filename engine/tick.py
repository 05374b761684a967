"""One tick: admit, denoise every running request one step, tell what changed.

Whatever fails ends the requests that it concerns, and nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusiongpt.engine.batch_facts import BatchFacts, describe_batch
from diffusiongpt.engine.captured_step import CapturedSteps
from diffusiongpt.engine.commits import Commits
from diffusiongpt.engine.finishing import finish, finish_reason
from diffusiongpt.engine.frame import Frame, TokenChange
from diffusiongpt.engine.frontier import Frontier
from diffusiongpt.engine.loader import LoadedModel
from diffusiongpt.engine.report import (
    changes_of,
    frame_of,
    last_frame,
    note_certain,
    note_logprobs,
)
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.round import Round
from diffusiongpt.engine.running import Running
from diffusiongpt.engine.sampling import Head
from diffusiongpt.engine.scheduler import Scheduler
from diffusiongpt.engine.seating import Seating
from diffusiongpt.engine.text import TextUpdate
from diffusiongpt.engine.tokenizer import Tokenizer

# Ticks that may fail in a row before the engine says that it cannot serve.
_MAX_FAILURES = 3
# Most positions of a batch that are computed whether needed or not, to have nothing to wait for.
_MOST_CELLS = 1024


class Ticker:
    """Turns a scheduler's requests into frames, tick by tick.

    Args:
        padded_to: tokens that every forward is padded to, or 0.
        ticks_per_round: most steps until the host reads what they changed.

    Attributes:
        failure: why the engine cannot serve any more.
    """

    def __init__(
        self,
        model: LoadedModel,
        head: Head,
        scheduler: Scheduler,
        tokenizer: Tokenizer | None,
        *,
        padded_to: int,
        ticks_per_round: int,
    ) -> None:
        self.failure: str | None = None
        self._model = model
        self._head = head
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._padded_to = padded_to
        self._ticks_per_round = ticks_per_round
        self._captured_steps = CapturedSteps(model, head, scheduler.table)
        self._stop_ids = frozenset(model.stop_token_ids)
        self._seating = Seating(model, head, scheduler, tokenizer, self._stop_ids)
        self._failures = 0
        self._aborted: list[Request] = []

    @property
    def has_aborted(self) -> bool:
        """Whether the last frame of an aborted request is still to come."""
        return bool(self._aborted)

    def run(self) -> list[Frame]:
        """One tick: admit, denoise every running request one step, send what changed; several
        steps where a round has so many."""
        frames = self._tell_aborted()
        frames += self._admit()
        frames += self._write_forced()
        batch = list(self._scheduler.running.values())
        if not batch:
            return frames
        try:
            steps = self._denoise(batch)
        except Exception as error:
            # Whatever it was (memory, a device fault), it ends the requests in the batch only.
            return frames + self._fail(batch, error)
        self._failures = 0
        for commits in steps:
            frames += self._tell(batch, commits)
        return frames

    def abort(self, request_id: str) -> None:
        """End a request; its slot is free at once. Unknown and finished ids are fine: the
        caller cannot know that the last frame is on its way."""
        waiting = self._scheduler.drop_waiting(request_id)
        if waiting is not None:
            self._aborted.append(waiting)
        running = self._scheduler.running.get(request_id)
        if running is not None:
            self._scheduler.remove(request_id)
            self._aborted.append(running.request)

    def _tell_aborted(self) -> list[Frame]:
        """The last frames of what was aborted since the tick before."""
        frames = [last_frame(request) for request in self._aborted]
        self._aborted.clear()
        return frames

    def _admit(self) -> list[Frame]:
        """Give slots to those whose turn it is; the frames with which they begin."""
        frames = []
        while (request := self._scheduler.next_admissible()) is not None:
            try:
                frames += self._seating.seat(request)
            except Exception as error:
                # Whatever it was, it ends this request only, and its slot is free again.
                self._scheduler.remove(request.request_id)
                message = f"the engine could not start this: {type(error).__name__}: {error}"
                frames.append(last_frame(request, message))
        return frames

    def _denoise(self, batch: Sequence[Running]) -> list[Commits]:
        """What the steps of a round changed."""
        whole_grid = self._computes_whole_grid(batch)
        facts = describe_batch(batch, num_tokens=self._padded_to, whole_grid=whole_grid)
        steps = self._begin_round(facts, self._frontier(batch, facts.width))
        most_left = max(running.most_steps_left for running in batch)
        for _ in range(min(self._ticks_per_round, most_left) if whole_grid else 1):
            steps.start([running.window() for running in batch])
            for running in batch:
                running.note_forward()
        changed = steps.read()
        for running in batch:
            self._scheduler.share_blocks(running)
        return changed

    def _begin_round(self, facts: BatchFacts, frontier: Frontier | None) -> Round:
        table = self._scheduler.table
        return Round(self._model, self._head, table, self._captured_steps, facts, frontier)

    def _computes_whole_grid(self, batch: Sequence[Running]) -> bool:
        """Whether there may be several steps until the host looks: not where constraints decide in
        every step, or where the whole grid of the batch is too much to be computed."""
        if self._ticks_per_round == 1 or any(running.guide for running in batch):
            return False
        width = max(running.block_end - running.block_start for running in batch)
        return len(batch) * width <= _MOST_CELLS

    def _tell(self, batch: Sequence[Running], commits: Commits) -> list[Frame]:
        """The frames of what a step changed in each request that took part."""
        frames = []
        note_logprobs(batch, commits, self._tokenizer)
        for running, went, step, is_open, changes in zip(
            batch,
            commits.went.tolist(),
            commits.step.tolist(),
            commits.is_open.tolist(),
            changes_of(batch, commits),
            strict=True,
        ):
            # Some end before what was started with them is read.
            if went and self._scheduler.running.get(running.request.request_id) is running:
                running.note_step(step, is_open)
                running.num_commit_steps += bool(changes)
                frames.append(self._commit(running, changes))
        return [frame for frame in frames if frame is not None]

    def _commit(self, running: Running, changes: Sequence[TokenChange]) -> Frame | None:
        """Take note of a request's changes; its frame, or None when nobody needs one."""
        running.fill(changes, self._stop_ids)
        update = TextUpdate(settled=running.settled)
        if running.text is not None:
            update = running.text.commit(changes, editable_from=running.editable_from)
        reason = finish_reason(running, update)
        running.record(changes)
        if reason is not None:
            return finish(self._scheduler, running, reason, update)
        watched = running.request.params.watch or running.text is None
        frame = frame_of(running, update=update) if watched or update.content else None
        self._scheduler.advance(running)
        return frame

    def _write_forced(self) -> list[Frame]:
        """Commit what constraints leave no choice about; it needs no forward."""
        frames: list[Frame | None] = []
        for running in list(self._scheduler.running.values()):
            if running.guide is None:
                continue
            try:
                changes = self._scheduler.write_forced(running)
            except Exception as error:
                # Whatever it was, it ends this request only, and says nothing of the engine.
                frames.append(self._end(running, _describe(error)))
                continue
            if changes:
                note_certain(running, changes, self._tokenizer)
                frames.append(self._commit(running, changes))
        return [frame for frame in frames if frame is not None]

    def _frontier(self, batch: Sequence[Running], width: int) -> Frontier | None:
        """Where constraints guide the coming step, if any do."""
        guides = [running.guide for running in batch]
        if not any(guides):
            return None
        return Frontier(
            guides,
            [running.block_span for running in batch],
            [running.request.policy.looks_back for running in batch],
            width=width,
            vocab_size=self._model.vocab_size,
            device=str(self._scheduler.table.ids.device),
        )

    def _fail(self, batch: Sequence[Running], error: Exception) -> list[Frame]:
        """End the requests of a failed tick and free their slots."""
        message = _describe(error)
        self._failures += 1
        if self._failures >= _MAX_FAILURES:
            self.failure = f"{self._failures} steps in a row failed, the last one so: {message}"
        return [self._end(running, message) for running in batch]

    def _end(self, running: Running, message: str) -> Frame:
        """End a request that failed and free its slot."""
        self._scheduler.remove(running.request.request_id)
        return last_frame(running.request, message)


def _describe(error: Exception) -> str:
    return f"the engine failed in this step: {type(error).__name__}: {error}"
