"""Admission: nobody starves, nobody blocks the line, budgets hold, and everything is given back."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.pages import Page
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.running import Running
from diffusiongpt.engine.waiting import MAX_OVERTAKEN, WaitingLine

from toy_models import CausalHashModel, HashModel, toy_engine

CAPACITY = 10


@dataclass(kw_only=True)
class Job:
    """A request of the simulated machine: it takes `size` of the capacity for `ticks`."""

    request_id: str
    size: int
    ticks: int
    overtaken: int = 0


jobs = st.lists(st.tuples(st.integers(1, CAPACITY), st.integers(1, 5)), max_size=5)


def simulate(arrivals: list[list[tuple[int, int]]]) -> Iterator[tuple[Job, list[Job], int]]:
    """Each admission, with those that then waited ahead of it and the capacity in use.

    Checks after every tick that whoever waits has a reason to.
    """
    line = WaitingLine()
    waiting: list[Job] = []
    running: list[Job] = []
    tick = 0
    while tick < len(arrivals) or waiting or running:
        for size, ticks in arrivals[tick] if tick < len(arrivals) else []:
            job = Job(request_id=f"{tick}-{len(waiting)}-{size}", size=size, ticks=ticks)
            waiting.append(job)
            line.append(job)  # type: ignore[arg-type]

        def fits(job: Any, running: list[Job] = running) -> bool:
            return sum(each.size for each in running) + job.size <= CAPACITY

        while (taken := line.take_next(fits)) is not None:
            job = next(each for each in waiting if each is taken)
            ahead = waiting[: waiting.index(job)]
            for each in ahead:
                each.overtaken += 1
            waiting.remove(job)
            running.append(job)
            yield job, ahead, sum(each.size for each in running)
        for place, each in enumerate(waiting):
            barred = any(other.overtaken >= MAX_OVERTAKEN for other in waiting[:place])
            assert barred or not fits(each)
        for each in running:
            each.ticks -= 1
        running = [each for each in running if each.ticks]
        tick += 1
        assert tick < 5000


@settings(max_examples=150, deadline=None)
@given(st.lists(jobs, max_size=40))
def test_everybody_gets_in_and_nobody_is_overtaken_more_often_than_the_rule_says(
    arrivals: list[list[tuple[int, int]]],
):
    admitted = 0
    for _, ahead, in_use in simulate(arrivals):
        admitted += 1
        assert in_use <= CAPACITY
        assert all(each.overtaken <= MAX_OVERTAKEN for each in ahead)
    assert admitted == sum(map(len, arrivals))


def test_an_endless_stream_of_small_requests_cannot_starve_a_large_one():
    # Small ones always leave 9 of 10 in use, so that the large one never fits by luck.
    arrivals = [[(1, 9), (1, 9), (CAPACITY, 1)], *[[(1, 9)] for _ in range(200)]]
    order = [job.size for job, _, _ in simulate(arrivals)]
    assert order.index(CAPACITY) == 2 + MAX_OVERTAKEN


def test_a_dropped_request_no_longer_bars_the_line():
    line = WaitingLine()
    large = SimpleNamespace(request_id="large", size=9)
    line.append(large)  # type: ignore[arg-type]
    for index in range(MAX_OVERTAKEN + 1):
        line.append(SimpleNamespace(request_id=f"small-{index}", size=1))  # type: ignore[arg-type]

    def is_small(request: Any) -> bool:
        return request.size == 1

    taken = [line.take_next(is_small) for _ in range(MAX_OVERTAKEN + 1)]
    assert [each is None for each in taken] == [False] * MAX_OVERTAKEN + [True]
    assert line.drop("large") is large
    assert line.drop("large") is None
    assert line.take_next(is_small) is not None
    assert len(line) == 0


def small() -> GenerationParams:
    return GenerationParams(max_tokens=4, policy="random", seed=1, block_length=0)


def test_small_requests_pass_a_large_one_that_waits_and_then_it_gets_in():
    model = HashModel(vocab_size=40, context_length=64)
    engine = toy_engine(model, num_slots=8, token_budget=60)
    running = engine.prepare([1] * 30, small().replace(max_tokens=20))
    large = engine.prepare([1] * 30, small().replace(max_tokens=30))
    engine.add(running)
    engine.add(large)
    engine.step()
    order: list[str] = []
    for _ in range(60):
        engine.add(engine.prepare([1], small()))
        order += [
            "large" if frame.request_id == large.request_id else "small"
            for frame in engine.step()
            if frame.step == 0
        ]
    assert order.count("large") == 1
    # Two at a time fit beside the running one; the large one gets in when it has ended.
    assert 0 < order.index("large") <= MAX_OVERTAKEN


class RowCounter(HashModel):
    """Remembers the head's rows of every step."""

    def backbone(
        self,
        ids: Tensor,
        position_ids: Tensor,
        plan: AttentionPlan,
        wanted: Tensor | None = None,
    ) -> Tensor:
        self.rows = [*getattr(self, "rows", []), self.num_head_rows]
        return super().backbone(ids, position_ids, plan, wanted)


class TokenCounter(CausalHashModel):
    """Remembers the tokens of every forward."""

    def backbone(
        self,
        ids: Tensor,
        position_ids: Tensor,
        plan: AttentionPlan,
        wanted: Tensor | None = None,
    ) -> Tensor:
        self.tokens = [*getattr(self, "tokens", []), ids.shape[1]]
        return super().backbone(ids, position_ids, plan, wanted)


@pytest.mark.parametrize("prefix_cache_bytes", [0, 10_000])
def test_cached_requests_run_together_as_the_tokens_that_they_compute_allow(prefix_cache_bytes):
    model = TokenCounter(vocab_size=40, context_length=128, block_length=4)
    engine = toy_engine(
        model,
        num_slots=16,
        token_budget=48,
        cache_budget=400,
        prefix_cache_bytes=prefix_cache_bytes,
    )
    rng = random.Random(5)
    for _ in range(60):
        prompt = [rng.randrange(5, 40) for _ in range(rng.choice([2, 9, 30]))]
        params = GenerationParams(
            max_tokens=rng.choice([3, 40, 70]), policy="random", seed=1, ignore_eos=True
        )
        engine.add(engine.prepare(prompt, params))
    most_running = 0
    while not engine.is_idle:
        engine.step()
        running = engine._scheduler.running.values()
        most_running = max(most_running, len(running))
        assert sum(engine._scheduler.num_kept(each.request) for each in running) <= 400
    assert max(model.tokens) <= 48
    # Whole canvases would fill the budget with one request.
    assert most_running >= 4


def test_what_can_never_fit_the_cache_budget_is_refused_at_once():
    model = CausalHashModel(vocab_size=40, context_length=128, block_length=4)
    engine = toy_engine(model, token_budget=48, cache_budget=64)
    with pytest.raises(InvalidRequest, match="need 72 positions in the cache"):
        engine.prepare([1] * 10, GenerationParams(max_tokens=60))
    with pytest.raises(InvalidRequest, match="need 56 tokens in one forward"):
        engine.prepare([1] * 54, GenerationParams(max_tokens=2))


def test_a_step_looks_at_no_more_rows_than_the_budget():
    model = RowCounter(vocab_size=40, context_length=64)
    engine = toy_engine(model, num_slots=8, row_budget=20, head_chunk=7)
    params = GenerationParams(max_tokens=30, policy="confidence", block_length=8, temperature=0.0)
    engine.generate([[1] * size for size in range(9)], params)
    per_step = [b - a for a, b in zip(model.rows, model.rows[1:], strict=False)]
    assert max(per_step) == 16


def test_a_block_beyond_the_row_budget_is_refused_at_once():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64), row_budget=20)
    with pytest.raises(InvalidRequest, match=r"a block of 30 positions .* row budget is 20"):
        engine.prepare([1], GenerationParams(max_tokens=30, block_length=0))
    engine.prepare([1], GenerationParams(max_tokens=30, block_length=20))
    with pytest.raises(LoadError, match="row_budget must be at least 1, got 0"):
        EngineConfig(row_budget=0)


def test_prompts_that_come_together_and_begin_alike_are_computed_once():
    model = CausalHashModel(vocab_size=40, context_length=64, block_length=4)
    engine = toy_engine(model)
    params = GenerationParams(max_tokens=4, seed=1, policy="random")
    prompts = [[1] * 32 + [kind] for kind in (2, 3, 4, 5)]
    usages = [completion.usage for completion in engine.generate(prompts, params)]
    assert [usage.cached_tokens for usage in usages] == [0, 32, 32, 32]


def soak(engine: Engine, num_requests: int, rng: random.Random) -> dict[FinishReason, int]:
    """Send requests of many kinds, abort some, and count how they ended."""
    ends: dict[FinishReason, int] = dict.fromkeys(FinishReason, 0)
    live: list[str] = []
    sent = 0
    while sent < num_requests or not engine.is_idle:
        for _ in range(rng.randint(0, 3)):
            if sent < num_requests and engine.num_waiting < engine.config.max_waiting:
                stem = [rng.randint(0, 2)] * rng.randint(0, 30)
                params = GenerationParams(
                    max_tokens=rng.choice((1, 3, 8, 8, 30)),
                    policy=rng.choice(("threshold", "random", "confidence")),
                    seed=sent,
                )
                request = engine.prepare([*stem, rng.randint(0, 30)], params)
                engine.add(request)
                live.append(request.request_id)
                sent += 1
        if live and rng.random() < 0.2:
            engine.abort(live.pop(rng.randrange(len(live))))
        if rng.random() < 0.01:
            engine._model.failing = True  # type: ignore[attr-defined]
        for frame in engine.step():
            if frame.finish_reason is not None:
                ends[frame.finish_reason] += 1
        engine._model.failing = False  # type: ignore[attr-defined]
    return ends


class FlakyCausal(CausalHashModel):
    failing = False

    def denoise(self, ids: Tensor) -> Tensor:
        if self.failing:
            raise MemoryError("no room")
        return super().denoise(ids)


def count_objects(*kinds: type) -> list[int]:
    gc.collect()
    found = [type(each) for each in gc.get_objects()]
    return [found.count(kind) for kind in kinds]


@pytest.mark.parametrize(
    "num_requests", [2_000, pytest.param(10_000, marks=pytest.mark.slow)], ids=str
)
def test_a_long_soak_gives_everything_back(num_requests: int):
    kinds = (Request, Running, SlotCache, Page)
    before = count_objects(*kinds)
    model = FlakyCausal(vocab_size=40, context_length=64, block_length=4)
    engine = toy_engine(
        model, num_slots=8, token_budget=200, row_budget=24, prefix_cache_bytes=64 * 64
    )
    ends = soak(engine, num_requests, random.Random(3))
    assert sum(ends.values()) == num_requests
    assert min(ends[reason] for reason in FinishReason if reason is not FinishReason.STOP) > 0
    scheduler = engine._scheduler
    assert sorted(scheduler.table._free) == list(range(8))
    assert not scheduler.running
    assert not len(scheduler.waiting)
    pages = scheduler.pages
    assert pages is not None
    assert pages.num_bytes <= 64 * 64
    after = count_objects(*kinds)
    root = 1
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, 0, 0, pages.num_pages + root]
