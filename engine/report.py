"""What a running request tells its caller: the frame of a step, and the last one.

Reads what the scheduler keeps of a request and empties what was not sent yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusiongpt.engine.commits import Commits
from diffusiongpt.engine.frame import FinishReason, Frame, TokenChange, Usage
from diffusiongpt.engine.holes import HoledText
from diffusiongpt.engine.logprobs import PositionLogprobs, TokenLogprob
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.running import Running
from diffusiongpt.engine.sampling import BANNED
from diffusiongpt.engine.text import TextUpdate
from diffusiongpt.engine.tokenizer import Tokenizer


def changes_of(batch: Sequence[Running], commits: Commits) -> list[list[TokenChange]]:
    """What one step changed in each request, in completion positions."""
    changes: list[list[TokenChange]] = [[] for _ in batch]
    for row, position in zip(
        commits.remasked_row.tolist(), commits.remasked_position.tolist(), strict=True
    ):
        changes[row].append(TokenChange(position - len(batch[row].request.prompt), None, 0.0))
    for row, position, token_id, confidence in zip(
        commits.row.tolist(),
        commits.position.tolist(),
        commits.token_id.tolist(),
        commits.confidence.tolist(),
        strict=True,
    ):
        in_completion = position - len(batch[row].request.prompt)
        changes[row].append(TokenChange(in_completion, token_id, confidence))
    return changes


def note_logprobs(batch: Sequence[Running], commits: Commits, tokenizer: Tokenizer | None) -> None:
    """Keep the log-probabilities of what was committed, for the requests that ask."""
    draws = commits.draws
    if draws.top_id is None or draws.top_log_prob is None:
        return
    columns = (commits.row, commits.position, draws.token_id, draws.log_prob)
    top = (draws.top_id, draws.top_log_prob)
    for row, position, token_id, logprob, ids, logprobs in zip(
        *(column.tolist() for column in (*columns, *top)), strict=True
    ):
        running = batch[row]
        place = position - len(running.request.prompt)
        if (num_top := running.request.params.logprobs) is None or running.is_past_end(place):
            continue
        likely = zip(ids[:num_top], logprobs[:num_top], strict=True)
        running.unsent_logprobs.append(
            PositionLogprobs(
                place,
                _spell(tokenizer, token_id, logprob),
                tuple(_spell(tokenizer, *each) for each in likely if each[1] > BANNED / 2),
            )
        )


def note_certain(
    running: Running, changes: Sequence[TokenChange], tokenizer: Tokenizer | None
) -> None:
    """The same for tokens that had no alternative: their probability is one."""
    if (num_top := running.request.params.logprobs) is None:
        return
    for position, token_id, _ in changes:
        if token_id is not None and not running.is_past_end(position):
            token = _spell(tokenizer, token_id, 0.0)
            likely = (token,) if num_top else ()
            running.unsent_logprobs.append(PositionLogprobs(position, token, likely))


def _spell(tokenizer: Tokenizer | None, token_id: int, logprob: float) -> TokenLogprob:
    if tokenizer is None:
        return TokenLogprob(token_id, "", None, logprob)
    text, data = tokenizer.spell(token_id)
    return TokenLogprob(token_id, text, data, logprob)


def frame_of(
    running: Running,
    *,
    update: TextUpdate | None,
    reason: FinishReason | None = None,
) -> Frame:
    """The frame of what a request has not sent yet; with a `reason`, its last one."""
    if update is None:
        update = TextUpdate(settled=running.settled)
    unsent, running.unsent = running.unsent, {}
    logprobs, running.unsent_logprobs = tuple(running.unsent_logprobs), []
    holed = running.text if isinstance(running.text, HoledText) else HoledText()
    return Frame(
        request_id=running.request.request_id,
        step=running.step,
        steps=running.request.steps,
        block=running.block,
        block_length=running.request.blocks.block_length,
        length=len(running.filled),
        masked=running.masked,
        tokens=tuple((position, each) for position, each in unsent.items() if each is not None),
        committed=running.take_recorded(),
        logprobs=logprobs,
        remasked=tuple(position for position, each in unsent.items() if each is None),
        set=update.set,
        unset=update.unset,
        content=update.content,
        settled=update.settled,
        holes=holed.holes,
        fills=() if reason is None else holed.fills,
        fill_reasons=() if reason is None else holed.fill_reasons,
        finish_reason=reason,
        usage=None if reason is None else running.usage(),
    )


def last_frame(request: Request, error: str | None = None) -> Frame:
    """The last frame of a request that ended without an answer: by an error, or aborted."""
    return Frame(
        request_id=request.request_id,
        step=0,
        steps=request.steps,
        block=0,
        block_length=request.blocks.block_length,
        length=request.params.max_tokens,
        masked=request.params.max_tokens,
        finish_reason=FinishReason.ABORT if error is None else FinishReason.ERROR,
        error=error,
        usage=Usage(prompt_tokens=request.num_prompt_tokens, completion_tokens=0, steps=0, nfe=0),
    )
