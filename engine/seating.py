"""Gives requests their slots, and says with what they begin: what is given, or a draft."""

from __future__ import annotations

import dataclasses

from diffusiongpt.engine.doubt import open_draft
from diffusiongpt.engine.draft import OpenedDraft
from diffusiongpt.engine.finishing import finish, finish_reason
from diffusiongpt.engine.frame import Frame, TokenChange
from diffusiongpt.engine.holes import HoledText
from diffusiongpt.engine.loader import LoadedModel
from diffusiongpt.engine.report import frame_of
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.sampling import Head
from diffusiongpt.engine.scheduler import Scheduler
from diffusiongpt.engine.text import TextCanvas, TextUpdate
from diffusiongpt.engine.tokenizer import Tokenizer


class Seating:
    """Takes slots for requests whose turn it is.

    Args:
        stop_ids: tokens that end a text.
    """

    def __init__(
        self,
        model: LoadedModel,
        head: Head,
        scheduler: Scheduler,
        tokenizer: Tokenizer | None,
        stop_ids: frozenset[int],
    ) -> None:
        self._model = model
        self._head = head
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids

    def seat(self, request: Request) -> list[Frame]:
        """Give a request its slot; its first frames."""
        if request.draft is not None:
            parts = (self._model, self._head, request, request.draft, self._scheduler.token_budget)
            return self._seat_draft(request, open_draft(*parts))
        running = self._scheduler.seat(request, self._new_text(request))
        update = None
        if running.text is not None and request.canvas.given:
            given = (TokenChange(*each, 1.0) for each in request.canvas.given)
            update = running.text.commit(given)
        return [frame_of(running, update=update)]

    def _seat_draft(self, request: Request, draft: OpenedDraft) -> list[Frame]:
        """Give a request its slot: a frame with its draft, and one that masks what is redone and
        settles what that leaves at the beginning. Some need nothing more."""
        running = self._scheduler.seat(request, self._new_text(request), draft)
        update = TextUpdate(settled=0)
        if running.text is not None:
            tokens = enumerate(zip(draft.token_ids, draft.confidence, strict=True))
            whole = [TokenChange(position, *token) for position, token in tokens]
            update = running.text.commit(whole, editable_from=0)
        running.unsent = dict(enumerate(draft.token_ids))
        first = frame_of(running, update=update)
        first = dataclasses.replace(first, masked=running.masked - len(draft.masked))
        running.begin_with(draft, self._stop_ids)
        update = TextUpdate(settled=running.settled)
        if running.text is not None:
            masks = [TokenChange(position, None, 0.0) for position in draft.masked]
            update = running.text.commit(masks, editable_from=running.editable_from)
        reason = finish_reason(running, update)
        if reason is not None:
            return [first, finish(self._scheduler, running, reason, update)]
        return [first, frame_of(running, update=update)]

    def _new_text(self, request: Request) -> TextCanvas | HoledText | None:
        if self._tokenizer is None:
            return None
        params, canvas = request.params, request.canvas
        if request.has_holes:
            return HoledText.of_region(
                self._tokenizer.token_bytes,
                canvas.region,
                canvas.holes,
                stop=params.stop,
                watch=params.watch,
            )
        return TextCanvas(
            self._tokenizer.token_bytes,
            params.max_tokens,
            stop=params.stop,
            watch=params.watch,
            end_token_ids=() if params.ignore_eos else self._stop_ids,
        )
