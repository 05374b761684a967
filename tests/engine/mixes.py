"""Requests of all kinds that run together, and what is told of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.frame import Frame
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS


def params_of(policy: str, max_tokens: int, block_length: int | None, **fields: Any) -> Any:
    steps = 2 * max_tokens if PRESETS[policy].tosses else None
    if block_length is not None:
        block_length = min(block_length, max_tokens)
    return GenerationParams(
        policy=policy, max_tokens=max_tokens, steps=steps, block_length=block_length, **fields
    )


asks = st.tuples(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.builds(
        params_of,
        policy=st.sampled_from(sorted(PRESETS)),
        max_tokens=st.integers(1, 14),
        block_length=st.sampled_from([None, 3, 8]),
        temperature=st.sampled_from([0.0, 0.8]),
        top_k=st.sampled_from([0, 5]),
        frequency_penalty=st.sampled_from([0.0, 0.7]),
        seed=st.integers(0, 99),
        logprobs=st.sampled_from([None, 2]),
        watch=st.just(True),
    ),
)


def frames_of(engine: Engine, mix: Any, aborted: int | None = None) -> list[list[Frame]]:
    """The frames of requests that run together, but of one that is aborted on the way."""
    requests = [engine.prepare(*ask) for ask in mix]
    frames: dict[str, list[Frame]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.add(request)
    for _ in range(300):
        for frame in engine.step():
            frames[frame.request_id].append(frame)
        if aborted is not None:
            engine.abort(requests[aborted % len(requests)].request_id)
        if engine.is_idle:
            break
    assert engine.is_idle
    return [
        frames[request.request_id]
        for index, request in enumerate(requests)
        if aborted is None or index != aborted % len(requests)
    ]


def unnamed(frames: list[list[Frame]]) -> list[list[Frame]]:
    """The same without the names of requests, which count on."""
    return [[replace(frame, request_id="") for frame in each] for each in frames]
