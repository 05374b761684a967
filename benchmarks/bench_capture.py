"""Replayed forwards against eager ones: whole canvases, and blocks of requests that keep their
keys, at several numbers of packed tokens; and whole answers, whose steps are replayed or not.

On CUDA a replay is one graph, and this is what it saves. On the CPU it is the same function on
padded tokens under one mask, so it only shows that the path runs: expect a ratio below 1.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusiongpt.engine.attention_plan import AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.loader import load_model
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.params import GenerationParams

from measure import in_turn, parse_arguments, ratio, report, write_random_model

NUM_CANVASES = (1, 2, 4, 8, 16, 32)
BLOCK_LENGTH = 8


def main() -> None:
    """Measure and report, in canvases of `canvas` tokens."""
    options = parse_arguments(__doc__, canvas=60, largest=2048)
    largest = 128 if options.quick else options.largest
    folder = write_random_model(options.quick)
    eager, captured = (load_model(folder, device=options.device) for _ in range(2))
    captured.capture(largest=largest, max_canvases=64)
    result: dict[str, Any] = {"attention": captured.captured_attention, "tokens": {}}
    for num_canvases in NUM_CANVASES:
        if num_canvases * options.canvas <= largest:
            lengths = (options.canvas,) * num_canvases
            result["tokens"][sum(lengths)] = measure(options.repeats, eager, captured, lengths)
    result["kept"] = measure_kept(options)
    numbers = (1,) if options.quick else (1, 4, 16)
    result["steps"] = {number: measure_steps(options, number) for number in numbers}
    result["ways"] = {way: count for way, count in captured.ways.items() if count}
    report(options, "capture", "no forward slower than eagerly, on CUDA", result)


def measure(
    repeats: int, eager: LoadedModel, captured: LoadedModel, lengths: tuple[int, ...]
) -> dict[str, Any]:
    """Seconds of a forward, and how many times faster a replay is."""
    ids = torch.randint(5, eager.vocab_size, (1, sum(lengths)), device=eager.device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(eager.device)
    seconds = in_turn(
        repeats,
        eager=partial(eager.backbone, ids, positions, eager.plan(*lengths)),
        captured=partial(captured.backbone, ids, positions, captured.plan(*lengths)),
    )
    return summarize(seconds)


def summarize(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and how many times faster a replay is."""
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "times_faster": ratio(seconds["eager"], seconds["captured"]),
    }


def measure_kept(options: argparse.Namespace) -> dict[str, Any]:
    """The same for one block each of requests that keep their keys, so many at a time."""
    folder = write_random_model(options.quick, block_length=BLOCK_LENGTH)
    eager, captured = (load_model(folder, device=options.device) for _ in range(2))
    most = max(NUM_CANVASES)
    room = options.canvas + BLOCK_LENGTH
    captured.capture(largest=most * BLOCK_LENGTH, max_canvases=most, num_kept=most * room)
    result: dict[str, Any] = {"attention": captured.captured_attention, "requests": {}}
    for number in NUM_CANVASES:
        forwards = [
            partial(step_of_blocks, model, number, options.canvas) for model in (eager, captured)
        ]
        seconds = in_turn(options.repeats, eager=forwards[0](), captured=forwards[1]())
        result["requests"][number] = summarize(seconds)
    result["ways"] = {way: count for way, count in captured.ways.items() if count}
    return result


def measure_steps(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Whole answers of so many requests at once that keep their keys: eager forwards, replayed
    ones, and replayed steps in rounds of as many as a block has positions."""
    folder = write_random_model(options.quick, block_length=BLOCK_LENGTH)
    ways = {
        "eager": {"capture": False},
        "captured": {"capture": True},
        "captured_steps": {"capture": True, "ticks_per_round": BLOCK_LENGTH},
    }
    engines = {
        name: Engine.from_pretrained(
            folder, device=options.device, token_budget=64 * number, prefix_cache_bytes=0, **way
        )
        for name, way in ways.items()
    }
    params = GenerationParams(max_tokens=8 * BLOCK_LENGTH, policy="random", seed=1, ignore_eos=True)
    prompts = [[5] * BLOCK_LENGTH] * number
    runs = {name: partial(engine.generate, prompts, params) for name, engine in engines.items()}
    seconds = in_turn(options.repeats, **runs)
    steps = engines["captured_steps"].forwards
    return {
        **summarize(seconds),
        "times_faster_by_steps": ratio(seconds["eager"], seconds["captured_steps"]),
        "ways": {way: count for way, count in steps.items() if count},
    }


def step_of_blocks(model: LoadedModel, number: int, kept: int) -> Callable[[], Tensor]:
    """A forward of a block for each of so many requests, behind what they keep."""
    pool = model.pool
    kept = kept // BLOCK_LENGTH * BLOCK_LENGTH
    room = kept + BLOCK_LENGTH
    caches = [
        SlotCache(room, room=None if pool is None else pool.take(room)) for _ in range(number)
    ]
    lengths = (kept,) * number
    ids = torch.randint(5, model.vocab_size, (1, room * number), device=model.device)
    positions = torch.arange(kept, device=model.device).repeat(number)[None]
    plan = AttentionPlan(lengths=lengths, block_length=BLOCK_LENGTH, caches=tuple(caches))
    model.backbone(ids[:, : kept * number], positions, plan)
    for cache in caches:
        cache.length = kept
        cache.give_back()
    plan = replace(plan, lengths=(BLOCK_LENGTH,) * number)
    positions = (kept + torch.arange(BLOCK_LENGTH, device=model.device)).repeat(number)[None]
    return partial(model.backbone, ids[:, -BLOCK_LENGTH * number :], positions, plan)


if __name__ == "__main__":
    main()
