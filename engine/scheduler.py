"""Who runs: admission, the blocks of a running request, its end.

Knows token ids and counts; the tensors are in `slots.py`, the text in `text.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.draft import OpenedDraft
from diffusiongpt.engine.errors import QueueFull
from diffusiongpt.engine.frame import TokenChange
from diffusiongpt.engine.guides import new_guide
from diffusiongpt.engine.holes import HoledText
from diffusiongpt.engine.pages import PageStore
from diffusiongpt.engine.pool import KeyPool
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.running import Running
from diffusiongpt.engine.slots import SlotTable
from diffusiongpt.engine.text import TextCanvas
from diffusiongpt.engine.waiting import WaitingLine


@dataclass(slots=True, kw_only=True)
class Scheduler:
    """Waiting requests in order of arrival, running ones by slot.

    A request is admissible when a slot is free, and the longest window, the cache and the
    largest block that it will ever have fit the budgets beside those of the running ones, so
    nobody is ever preempted; whose turn it is among the admissible is the rule of `waiting.py`.

    Attributes:
        token_budget: most tokens of one packed forward.
        cache_budget: most positions, over all running requests, whose keys and values are kept.
        row_budget: most rows that go through the output head in one step.
        max_waiting: bound of the line.
        uses_cache: whether requests keep the keys and values of their settled blocks.
        pages: settled blocks that requests share, if they do.
        pool: where exact caches lie, if forwards are recorded; one that finds no place there has
            memory of its own.
        logit_shift: whether the logits at a position predict the next one.
    """

    table: SlotTable
    token_budget: int
    cache_budget: int
    row_budget: int
    max_waiting: int
    uses_cache: bool = False
    pages: PageStore | None = None
    pool: KeyPool | None = None
    logit_shift: bool = False
    waiting: WaitingLine = field(default_factory=WaitingLine)
    running: dict[str, Running] = field(default_factory=dict)

    def enqueue(self, request: Request) -> None:
        """Let a request wait for a slot; raises QueueFull."""
        if len(self.waiting) >= self.max_waiting:
            raise QueueFull(
                f"{len(self.waiting)} requests are waiting already, the most that may; "
                "try again later"
            )
        self.waiting.append(request)

    def next_admissible(self) -> Request | None:
        """Take the request whose turn it is, if there is room for one now."""
        if not self.waiting or not self.table.num_free:
            return None
        running = self.running.values()
        tokens = self.token_budget - sum(each.max_tokens_ahead for each in running)
        kept = self.cache_budget - sum(self.num_kept(each.request) for each in running)
        rows = self.row_budget - sum(each.request.blocks.max_rows for each in running)
        return self.waiting.take_next(
            lambda request: (
                self.max_tokens(request) <= tokens
                and self.num_kept(request) <= kept
                and request.blocks.max_rows <= rows
                and not self._is_prompt_underway(request)
            )
        )

    def max_tokens(self, request: Request) -> int:
        """Most tokens that one forward computes of a request."""
        if self._keeps_blocks(request) and not request.may_pass_blocks:
            return request.blocks.max_cached_window + request.num_shadows
        return request.blocks.max_window + request.num_shadows

    def num_kept(self, request: Request) -> int:
        """Positions of a request whose keys and values are kept while it runs."""
        approximates = request.params.cache in ("prefix", "dual")
        if not approximates and not self._keeps_blocks(request):
            return 0
        return request.blocks.window(request.blocks.end)[1]

    def _keeps_blocks(self, request: Request) -> bool:
        # A window that moves gives its tokens new positions, and with them new keys.
        return self.uses_cache and request.blocks.aligned and request.blocks.fits_context

    def _is_prompt_underway(self, request: Request) -> bool:
        """Whether the coming step computes a block of the prompt that would be shared after it;
        it is worth a tick to wait for that."""
        if self.pages is None or not self._shares_pages(request):
            return False
        stop = (self.pages.count_known(request.prompt) + 1) * self.pages.block_length
        if stop > len(request.prompt):
            return False
        shared = request.prompt[:stop]
        return any(
            each.nfe == 0 and each.page is not None and each.request.prompt[:stop] == shared
            for each in self.running.values()
        )

    def _shares_pages(self, request: Request) -> bool:
        """Whether a request's blocks are those of the shared pages."""
        blocks = request.blocks
        own = self.pages is not None and blocks.causal_block == self.pages.block_length
        return own and blocks.fits_context

    def seat(
        self,
        request: Request,
        text: TextCanvas | HoledText | None,
        draft: OpenedDraft | None = None,
    ) -> Running:
        """Give a request its slot, with what is kept of its draft, and enter its first block."""
        canvas = request.canvas
        bias = request.params.logit_bias
        slot = self.table.take(canvas, request.integers(), request.reals(), bias)
        running = Running(
            request=request,
            slot=slot,
            text=text,
            filled=bytearray(each is not None for each in canvas.region),
            masked=canvas.num_masked,
        )
        running.guide = new_guide(request.languages, canvas)
        self.running[request.request_id] = running
        if draft is not None:
            self._place_draft(running, draft)
        self._open_cache(running)
        self.enter_block(running, start=len(request.prompt))
        if not running.is_due:
            running.is_open = False
            self.advance(running)
        return running

    def _place_draft(self, running: Running, draft: OpenedDraft) -> None:
        kept = draft.kept
        origin = len(running.request.prompt)
        ids = [draft.token_ids[each] for each in kept]
        confidence = [draft.confidence[each] for each in kept]
        self.table.place(running.slot, [origin + each for each in kept], ids, confidence)
        if running.guide is not None and kept:
            running.guide.accept_at(kept, ids, confidence)
        for position in kept:
            running.filled[position] = 1
        running.masked -= len(kept)

    def _open_cache(self, running: Running) -> None:
        """Give a request its cache; an exact one begins with what is known of its prompt."""
        request = running.request
        capacity = request.blocks.window(request.blocks.end)[1]
        kind = request.params.cache
        if kind == "prefix" or kind == "dual":
            running.cache = SlotCache(capacity, kind, lead=int(self.logit_shift))
            return
        if not self._keeps_blocks(request):
            return
        room = None if self.pool is None else self.pool.take(capacity)
        running.cache = SlotCache(capacity, room=room)
        if self.pages is None or not self._shares_pages(request):
            return
        running.page = self.pages.take(request.prompt)
        if known := running.page.path():
            running.cache.load([page.data for page in known])
            running.cached_tokens = running.cache.length

    def share_blocks(self, running: Running) -> None:
        """Share what the forwards of a request settled, if others may need it."""
        cache, pages = running.cache, self.pages
        if cache is None or pages is None or running.page is None:
            return
        start = running.page.depth * pages.block_length
        ids = self.table.ids[running.slot, start : cache.length].tolist()
        for begin in range(start, cache.length, pages.block_length):
            end = begin + pages.block_length
            block = tuple(ids[begin - start : end - start])
            running.page = pages.put(running.page, block, cache.copy(begin, end))
            if running.page is None:
                return

    def write_forced(self, running: Running) -> list[TokenChange]:
        """Write what a constraint leaves no choice about into a request's block, and say so.

        A step has to settle a block, so the last mask is left to it.
        """
        guide = running.guide
        if guide is None or running.block_masked < 2:
            return []
        forced = guide.take_forced_in(*running.block_span, running.block_masked - 1)
        if forced:
            origin = len(running.request.prompt)
            positions = [origin + position for position, _ in forced]
            self.table.write_given(running.slot, positions, [token for _, token in forced])
        return [TokenChange(position, token, 1.0) for position, token in forced]

    def enter_block(self, running: Running, start: int) -> None:
        """Point a request at the block that holds canvas position `start`."""
        blocks = running.request.blocks
        running.step_base += running.block_step
        running.block_step = 0
        running.is_open = True
        running.block_start, running.block_end = start, blocks.block_end(start)
        if running.cache is not None:
            running.cache.enter_block()
        origin = len(running.request.prompt)
        running.block_masked = running.filled.count(0, start - origin, running.block_end - origin)
        steps_left = running.request.steps - running.step_base
        tosses = running.request.policy.tosses
        running.block_steps = share_of_steps(
            steps_left=steps_left,
            block_tokens=running.block_masked,
            tokens_left=running.masked,
            most=steps_left if tosses else running.block_masked,
            blocks_after=sum(
                0 in running.filled[begin - origin : end - origin]
                for begin, end in blocks.spans_from(running.block_end)
            ),
        )
        self.table.enter_block(running.slot, start, running.block_end, running.block_steps)
        if running.block_masked == 0:
            self.table.note_state(running.slot, start, running.block_end)

    def advance(self, running: Running) -> None:
        """Move on to the next block with something to do when this one is done."""
        if running.is_open:
            return
        while running.has_blocks_left:
            running.block += 1
            self.enter_block(running, start=running.block_end)
            if running.is_due:
                return

    def remove(self, request_id: str) -> Running | None:
        """Free the slot of a running request; None when it does not run."""
        running = self.running.pop(request_id, None)
        if running is not None:
            self.table.give_back(running.slot)
            if running.cache is not None:
                running.cache.give_back()
            if self.pages is not None and running.page is not None:
                self.pages.give_back(running.page)
        return running

    def drop_waiting(self, request_id: str) -> Request | None:
        """Take a request out of the queue; None when it does not wait."""
        return self.waiting.drop(request_id)


def share_of_steps(
    *, steps_left: int, block_tokens: int, tokens_left: int, most: int, blocks_after: int
) -> int:
    """A block's share of the step budget, by its tokens: at least one step, at most `most`, and
    one left for every block after it. A block that is full already takes none of it."""
    if not block_tokens:
        return 1
    share = (2 * steps_left * block_tokens + tokens_left) // (2 * tokens_left)
    return max(1, min(share, most, steps_left - blocks_after))
