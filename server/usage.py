"""What an answer cost, in OpenAI's words and in llama.cpp's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from diffusiongpt.engine.frame import Frame, Usage
from diffusiongpt.engine.params import GenerationParams

NO_USAGE = Usage(prompt_tokens=0, completion_tokens=0, steps=0, nfe=0)


class Stopwatch:
    """When an answer began and its first text settled."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._first: float | None = None

    def note_content(self) -> None:
        """Remember the time of the first settled text."""
        if self._first is None:
            self._first = time.perf_counter()

    def timings(self, usage: Usage) -> dict[str, float]:
        """llama.cpp's keys, which clients show as tokens per second, and the first text's."""
        now = time.perf_counter()
        elapsed = max(now - self._begin, 1e-9)
        first = self._first if self._first is not None else now
        return {
            "prompt_n": usage.prompt_tokens,
            "predicted_n": usage.completion_tokens,
            "predicted_ms": round(elapsed * 1000, 3),
            "predicted_per_second": round(usage.completion_tokens / elapsed, 3),
            "first_text_ms": round((first - self._begin) * 1000, 3),
        }


def sum_usage(last_frames: Sequence[Frame], num_choices: int) -> Usage:
    """What the choices of one request cost together; each prompt counts once.

    Args:
        last_frames: of every choice, prompt after prompt. num_choices: of each prompt.
    """
    usages = [frame.usage or NO_USAGE for frame in last_frames]
    once = usages[::num_choices]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in once),
        cached_tokens=sum(usage.cached_tokens for usage in once),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        steps=sum(usage.steps for usage in usages),
        nfe=sum(usage.nfe for usage in usages),
        accepted_tokens=sum(usage.accepted_tokens for usage in usages),
        rejected_tokens=sum(usage.rejected_tokens for usage in usages),
    )


def usage_of(usage: Usage, reasoning_tokens: int = 0) -> dict[str, Any]:
    """OpenAI's usage object; its details say how the tokens came about."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning_tokens,
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.rejected_tokens,
            "denoising_steps": usage.steps,
            "nfe": usage.nfe,
            "tokens_per_forward": _tokens_per_forward(usage),
        },
    }


def summary(params: GenerationParams, usage: Usage) -> dict[str, Any]:
    """What it takes to repeat an answer, and what it cost; the seed is the first choice's."""
    return {
        "seed": params.seed,
        "policy": params.policy,
        "denoising_steps": usage.steps,
        "nfe": usage.nfe,
        "tokens_per_forward": _tokens_per_forward(usage),
    }


def _tokens_per_forward(usage: Usage) -> float:
    return round(usage.completion_tokens / usage.nfe, 3) if usage.nfe else 0.0
