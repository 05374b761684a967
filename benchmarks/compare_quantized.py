"""What int8 and int4 weights cost in quality and in time, against the same model unquantised.

python benchmarks/compare_quantized.py [--model FOLDER]     (needs torchao)

Quality: at masked positions of half-masked texts the divergence KL(plain || quantised) in nats and
how often both find the same token most likely, and the difference of the evidence lower bound.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongpt.engine import Engine, GenerationParams
from diffusiongpt.engine.bench import Workload, make_prompts

from measure import in_turn, parse_arguments, ratio, report, write_random_model


def main() -> None:
    """Measure and report."""
    options = parse_arguments(__doc__, takes_model=True, samples=32, tokens=64, length=64)
    model: str | Path | None = options.model
    if options.quick:
        model = write_random_model(True, hidden_size=64, intermediate_size=64)
        options.samples = 2
    engines = {
        name: Engine.from_pretrained(model, quantize=kind, device=options.device)
        for name, kind in (("plain", None), ("int8", "int8"), ("int4", "int4"))
    }
    workload = Workload(requests=options.samples, prompt_tokens=options.tokens, seed=1)
    texts = make_prompts(engines["plain"], workload)
    params = GenerationParams(
        max_tokens=16 if options.quick else options.length, seed=1, ignore_eos=True
    )
    seconds = in_turn(
        options.repeats,
        **{name: partial(run, engine, texts[:1], params) for name, engine in engines.items()},
        **{
            f"{name}_16": partial(run, engine, (texts * 16)[:16], params)
            for name, engine in engines.items()
        },
    )
    plain = engines["plain"]
    result: dict[str, Any] = {
        "model": plain.info.name,
        "bytes_of_layers": {name: layer_bytes(each) for name, each in engines.items()},
        "score_of_plain": mean_score(plain, texts),
    }
    for name in ("int8", "int4"):
        result[name] = {
            **compare(plain, engines[name], texts),
            "score_difference": mean_score(engines[name], texts) - result["score_of_plain"],
            "times_the_time_of_1": ratio(seconds[name], seconds["plain"]),
            "times_the_time_of_16": ratio(seconds[f"{name}_16"], seconds["plain_16"]),
        }
    report(options, "quantized", "stated, not bounded", result)


def run(engine: Engine, prompts: Sequence[list[int]], params: GenerationParams) -> None:
    """Denoise all prompts together."""
    engine.generate(prompts, params)


def compare(plain: Engine, other: Engine, texts: Sequence[list[int]]) -> dict[str, float]:
    """Divergence in nats and agreement of the most likely token, over masked positions."""
    draw = random.Random(0)
    divergences: list[float] = []
    agreements: list[float] = []
    for text in texts:
        hidden = draw.sample(range(len(text)), k=len(text) // 2)
        canvas = [
            plain.model.mask_token_id if position in hidden else token_id
            for position, token_id in enumerate(text)
        ]
        before, after = (log_probs(each, canvas, hidden) for each in (plain, other))
        divergences += (before.exp() * (before - after)).sum(dim=-1).tolist()
        agreements += (before.argmax(dim=-1) == after.argmax(dim=-1)).float().tolist()
    return {
        "kl_nats": statistics.mean(divergences),
        "same_most_likely_token": statistics.mean(agreements),
    }


def log_probs(engine: Engine, canvas: list[int], positions: list[int]) -> Tensor:
    """(R, V) of some positions, what is never emitted left out."""
    logits = engine.logits(canvas)[positions]
    logits[:, list(engine.model.never_emit_token_ids)] = -1e30
    return logits.log_softmax(dim=-1)


def mean_score(engine: Engine, texts: Sequence[list[int]]) -> float:
    """The bound on the negative log-likelihood in nats a token, the same noise for every engine."""
    scores = engine.score(texts, draws=8, seed=1)
    return sum(each.nats for each in scores) / sum(map(len, texts))


def layer_bytes(engine: Engine) -> int:
    """Memory of the layers' weights and scales."""
    layers = engine.model._network.base_model.get_submodule("layers")
    return sum(tensor_bytes(each.data) for each in layers.parameters())


def tensor_bytes(tensor: Tensor) -> int:
    """Of a plain tensor, or of the parts that a quantised one is made of."""
    if type(tensor) is Tensor:
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(tensor_bytes(getattr(tensor, name)) for name in names)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
