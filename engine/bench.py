"""How fast an engine is: a mix of requests all at once, timed from outside.

Requests ignore the end of text, so that every run does the same work. A request's latency
counts from the moment when all were handed over, its wait for a slot included. Every round has
the same prompts, so an engine that keeps settled blocks for later requests
(`prefix_cache_bytes`) finds them again.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import EngineFailure, InvalidRequest
from diffusiongpt.engine.frame import FinishReason, Usage
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.request import Request

_SENTENCES = (
    "Once upon a time there was a small cat who lived by the sea.",
    "The old man opened the door and looked out into the rain.",
    "She put the letter on the table and did not say a word.",
    "Every morning the children walked along the river to school.",
    "Water boils at a lower temperature on top of a mountain.",
    "The train was late, so they sat down and talked about music.",
    "He wrote a list of all the things that he wanted to learn.",
    "In the garden behind the house grew apples, beans and roses.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to measure: every policy at every length, in turn, until there are `requests`.

    Attributes:
        prompt_tokens: length of each prompt, cut from built-in sentences in an order that
            follows from the seed (random ids without a tokenizer).
        max_tokens, policies: the mix; a policy of None is the model's own.
        steps, block_length, temperature: of every request.
        repeats: rounds that count; one more warms up.
    """

    requests: int = 16
    prompt_tokens: int = 64
    max_tokens: tuple[int, ...] = (128,)
    policies: tuple[str | None, ...] = (None,)
    steps: int | None = None
    block_length: int | None = None
    temperature: float | None = None
    seed: int = 0
    repeats: int = 3

    def __post_init__(self) -> None:
        for name in ("requests", "prompt_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1, got {getattr(self, name)}", name)

    def params(self) -> list[GenerationParams]:
        """The parameters of each request; raises InvalidRequest."""
        mix = list(product(self.policies, self.max_tokens))
        return [
            GenerationParams(
                max_tokens=max_tokens,
                policy=policy,
                steps=self.steps,
                block_length=self.block_length,
                temperature=self.temperature,
                seed=self.seed + index,
                ignore_eos=True,
            )
            for index in range(self.requests)
            for policy, max_tokens in [mix[index % len(mix)]]
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One request of one round: its latency and the time to its first tokens, in seconds."""

    policy: str
    max_tokens: int
    latency_s: float
    first_s: float
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """All requests once: seconds in all, and the work of the model."""

    seconds: float
    forwards: int
    tokens: int
    head_rows: int
    timings: tuple[Timing, ...]


def run_benchmark(engine: Engine, workload: Workload) -> dict[str, Any]:
    """Measure a workload; plain values, ready for JSON.

    Raises:
        InvalidRequest: a request of the mix cannot be honoured; nothing was started.
        EngineFailure: a step failed.
    """
    params = workload.params()
    prompts = make_prompts(engine, workload)
    for prompt, each in zip(prompts, params, strict=True):
        engine.prepare(prompt, each)
    rounds = [run_round(engine, prompts, params) for _ in range(workload.repeats + 1)][1:]
    rate = measure_matmul_rate(engine.model.dtype, engine.model.device)
    flops = [engine.model.linear_flops(each.tokens, each.head_rows) for each in rounds]
    shares = [
        done / each.seconds / rate
        for done, each in zip(flops, rounds, strict=True)
        if done is not None
    ]
    return {
        "model": engine.info.name,
        "parameters": engine.info.num_parameters,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device": str(engine.model.device),
        "threads": torch.get_num_threads(),
        "requests": workload.requests,
        "prompt_tokens": workload.prompt_tokens,
        "seed": workload.seed,
        "repeats": workload.repeats,
        "seconds": _spread([each.seconds for each in rounds]),
        "forwards": statistics.median(each.forwards for each in rounds),
        "captured_attention": engine.model.captured_attention,
        "head_runs": engine.head_runs,
        "forwards_by_way": {way: count for way, count in engine.forwards.items() if count},
        "packed_tokens": statistics.median(each.tokens for each in rounds),
        "head_rows": statistics.median(each.head_rows for each in rounds),
        "matmul_gflops": rate / 1e9,
        "matmul_share": _spread(shares) if shares else None,
        "total": _summary(rounds, [each.timings for each in rounds]),
        "mix": _by_kind(rounds),
    }


def make_prompts(engine: Engine, workload: Workload) -> list[list[int]]:
    """Token ids of each request's prompt."""
    draw = random.Random(workload.seed)
    prompts = []
    for _ in range(workload.requests):
        if engine.tokenizer is None:
            choices = range(engine.info.vocab_size)
            usable = [each for each in choices if each not in engine.model.never_emit_token_ids]
            prompts.append(draw.choices(usable, k=workload.prompt_tokens))
            continue
        ids: list[int] = []
        while len(ids) < workload.prompt_tokens:
            ids += engine.encode(" ".join(draw.sample(_SENTENCES, k=len(_SENTENCES))) + " ")
        prompts.append(ids[: workload.prompt_tokens])
    return prompts


def run_round(
    engine: Engine, prompts: Sequence[list[int]], params: Sequence[GenerationParams]
) -> Round:
    """Hand over all requests, turn the engine until all are done."""
    model = engine.model
    before = (model.num_forwards, model.num_tokens, model.num_head_rows)
    requests = [engine.prepare(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    by_id = {each.request_id: each for each in requests}
    first_s: dict[str, float] = {}
    timings: list[Timing] = []
    backlog = list(reversed(requests))
    start = time.perf_counter()
    while backlog or not engine.is_idle:
        while backlog and engine.num_waiting < engine.config.max_waiting:
            engine.add(backlog.pop())
        for frame in engine.step():
            elapsed = time.perf_counter() - start
            if frame.tokens:
                first_s.setdefault(frame.request_id, elapsed)
            if frame.finish_reason is FinishReason.ERROR:
                raise EngineFailure(frame.error or "the engine failed")
            if frame.usage is not None:
                request = by_id[frame.request_id]
                timings.append(_timing(request, elapsed, first_s[frame.request_id], frame.usage))
    seconds = time.perf_counter() - start
    return Round(
        seconds=seconds,
        forwards=model.num_forwards - before[0],
        tokens=model.num_tokens - before[1],
        head_rows=model.num_head_rows - before[2],
        timings=tuple(timings),
    )


def _timing(request: Request, latency_s: float, first_s: float, usage: Usage) -> Timing:
    return Timing(
        policy=request.params.policy or "",
        max_tokens=request.params.max_tokens,
        latency_s=latency_s,
        first_s=first_s,
        usage=usage,
    )


def measure_matmul_rate(dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """Operations a second of one large matrix product, the best of several."""
    size = 2048 if device.type == "cpu" else 8192
    left = torch.ones(size, size, dtype=dtype, device=device)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        (left @ left)[0, 0].item()  # the read waits for the device
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def _by_kind(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    kinds = dict.fromkeys((each.policy, each.max_tokens) for each in rounds[0].timings)
    rows = []
    for policy, max_tokens in sorted(kinds):
        chosen = [
            [t for t in each.timings if (t.policy, t.max_tokens) == (policy, max_tokens)]
            for each in rounds
        ]
        rows.append({"policy": policy, "max_tokens": max_tokens, **_summary(rounds, chosen)})
    return rows


def _summary(rounds: Sequence[Round], chosen: Sequence[Sequence[Timing]]) -> dict[str, Any]:
    """Of some requests of each round: rates are medians over rounds, latencies over requests."""
    timings = [timing for each in chosen for timing in each]
    tokens = [sum(t.usage.completion_tokens for t in each) for each in chosen]
    nfe = [sum(t.usage.nfe for t in each) for each in chosen]
    return {
        "requests": len(chosen[0]),
        "tokens_per_second": _spread(
            [count / each.seconds for count, each in zip(tokens, rounds, strict=True)]
        ),
        "nfe": statistics.mean(t.usage.nfe for t in timings),
        "tokens_per_forward": sum(tokens) / sum(nfe),
        "first_p50_s": _percentile([t.first_s for t in timings], 0.5),
        "latency_p50_s": _percentile([t.latency_s for t in timings], 0.5),
        "latency_p95_s": _percentile([t.latency_s for t in timings], 0.95),
    }


def _percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
