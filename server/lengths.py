"""Infills whose hole finds its own length: several lengths side by side, the likeliest is told."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Sequence

from diffusiongpt.engine.canvas import Infill
from diffusiongpt.engine.errors import EngineError
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.lengths import limit_steps, with_lengths
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.generator import Generation, Generator, abort_all, merge


def submit_lengths(generator: Generator, infill: Infill, params: GenerationParams) -> Generation:
    """Start an infill with each length that its hole may have; raises an EngineError."""
    if not infill.is_automatic:
        return generator.submit(infill, params)
    tried: list[Generation] = []
    try:
        for each in with_lengths(infill):
            if tried:
                params = params.replace(seed=tried[0].params.seed)
            tried.append(generator.submit(each, limit_steps(params, each)))
    except EngineError:
        abort_all(tried)
        raise
    return LikeliestLength(tried)


class LikeliestLength:
    """One generation of several: its frames come once all have ended, and are those of the one
    whose tokens have the best mean log-probability, the first of equals."""

    def __init__(self, tried: Sequence[Generation]) -> None:
        self._tried = tried

    @property
    def params(self) -> GenerationParams:
        """The parameters that all have in common."""
        return self._tried[0].params

    @property
    def num_pending(self) -> int:
        """Nothing waits: a reader is never behind what has ended."""
        return 0

    def abort(self) -> None:
        """End all of them."""
        abort_all(self._tried)

    async def __aiter__(self) -> AsyncIterator[Frame]:
        frames: list[list[Frame]] = [[] for _ in self._tried]
        async with contextlib.aclosing(merge(self._tried)) as arriving:
            async for index, frame in arriving:
                if frame.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                    yield frame
                    return
                frames[index].append(frame)
        for frame in max(frames, key=_mean_log_prob):
            yield frame


def _mean_log_prob(frames: Sequence[Frame]) -> float:
    committed = {each.position: each.log_prob for frame in frames for each in frame.committed}
    return math.fsum(committed.values()) / len(committed) if committed else -math.inf
