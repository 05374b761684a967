"""Prompts in, finished completions out: the values around `Engine.generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffusiongpt.engine.canvas import Canvas, Infill
from diffusiongpt.engine.errors import EngineFailure
from diffusiongpt.engine.frame import CommittedToken, FinishReason, Frame, Usage

Prompt = str | Sequence[int] | Infill


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished completion.

    Attributes:
        text: its content. token_ids: its tokens up to and including the end-of-text token.
        finish_reason: why it ended. usage: what it cost.
        fills: of an infill, the text of each hole. fill_reasons: why it ends.
        tokens: every token that was committed, by position, with its log-probability; where a
            text ended early, those after its end included.
        lengths: of a hole of automatic length, what was tried: (length, mean log-probability).
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    fills: tuple[str, ...] = ()
    fill_reasons: tuple[FinishReason, ...] = ()
    tokens: tuple[CommittedToken, ...] = ()
    lengths: tuple[tuple[int, float], ...] = ()

    @property
    def mean_log_prob(self) -> float:
        """Mean log-probability of the committed tokens, -inf when there is none."""
        if not self.tokens:
            return -math.inf
        return math.fsum(each.log_prob for each in self.tokens) / len(self.tokens)


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list; a flat list of integers is one prompt."""
    if isinstance(prompts, str | Infill):
        return [prompts]
    token_ids = [each for each in prompts if isinstance(each, int)]
    if token_ids:
        return [token_ids]
    return [each for each in prompts if not isinstance(each, int)]


def complete(frames: Sequence[Frame], canvas: Canvas) -> Completion:
    """The completion that a request's frames add up to.

    Raises:
        EngineFailure: the request failed.
    """
    last = frames[-1]
    if last.finish_reason is FinishReason.ERROR:
        raise EngineFailure(last.error or "the engine failed")
    if last.finish_reason is None or last.usage is None:
        raise EngineFailure("the request ended without a last frame")
    committed: dict[int, CommittedToken] = {}
    for frame in frames:
        # What takes another's place after the end of a text is not among the commits.
        for position in (*frame.remasked, *(position for position, _ in frame.tokens)):
            committed.pop(position, None)
        committed |= {each.position: each for each in frame.committed}
    tokens = dict(canvas.given)
    tokens |= dict(token for frame in frames for token in frame.tokens)
    end = len(canvas.region) if canvas.is_infill else last.usage.completion_tokens
    token_ids = tuple(tokens[position] for position in range(end) if position in tokens)
    return Completion(
        text="".join(frame.content for frame in frames),
        token_ids=token_ids,
        finish_reason=last.finish_reason,
        usage=last.usage,
        fills=last.fills,
        fill_reasons=last.fill_reasons,
        tokens=tuple(committed[position] for position in sorted(committed)),
    )
