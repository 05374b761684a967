"""Prompts in, finished completions out: the values around `Engine.generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusiongpt.engine.errors import EngineFailure
from diffusiongpt.engine.frame import FinishReason, Frame, Usage
from diffusiongpt.engine.randomness import wrap_64

Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished completion.

    Attributes:
        text: its content. token_ids: its tokens up to and including the end-of-text token.
        finish_reason: why it ended. usage: what it cost.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list; a flat list of integers is one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    token_ids = [each for each in prompts if isinstance(each, int)]
    if token_ids:
        return [token_ids]
    return [each for each in prompts if not isinstance(each, int)]


def seeds_of(seed: int | None, count: int) -> list[int | None]:
    """The seeds of `count` prompts that were asked for with one: seed, seed + 1, ..."""
    if seed is None:
        return [None] * count
    return [wrap_64(seed + index) for index in range(count)]


def complete(frames: Sequence[Frame]) -> Completion:
    """The completion that a request's frames add up to; raises EngineFailure when it has none."""
    last = frames[-1]
    if last.finish_reason is FinishReason.ERROR:
        raise EngineFailure(last.error or "the engine failed")
    if last.finish_reason is None or last.usage is None:
        raise EngineFailure("the request ended without a last frame")
    tokens = dict(token for frame in frames for token in frame.tokens)
    token_ids = tuple(
        tokens[position] for position in range(last.usage.completion_tokens) if position in tokens
    )
    return Completion(
        text="".join(frame.content for frame in frames),
        token_ids=token_ids,
        finish_reason=last.finish_reason,
        usage=last.usage,
    )
