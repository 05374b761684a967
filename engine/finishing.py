"""When a request is complete, and how it ends then."""

from __future__ import annotations

from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.report import frame_of
from diffusiongpt.engine.running import Running
from diffusiongpt.engine.scheduler import Scheduler
from diffusiongpt.engine.text import TextUpdate


def finish_reason(running: Running, update: TextUpdate) -> FinishReason | None:
    """Why a request is complete after an update of its text; None while it is not."""
    is_whole = running.guide is not None and running.guide.is_complete
    is_whole = is_whole and running.editable_from is None
    if update.stopped or running.has_ended or is_whole:
        return FinishReason.STOP
    if running.masked or running.is_open or running.has_blocks_left:
        return None
    return FinishReason.STOP if running.request.canvas.is_infill else FinishReason.LENGTH


def finish(
    scheduler: Scheduler, running: Running, reason: FinishReason, update: TextUpdate
) -> Frame:
    """Free the slot of a complete request; its last frame."""
    if running.text is not None:
        end = running.settled if running.stopped_at is None else running.stopped_at
        update = update.followed_by(running.text.finish(end))
    scheduler.remove(running.request.request_id)
    return frame_of(running, update=update, reason=reason)
