"""What a served model writes, judged: endings, quality against forwards, holes filled.

The engine writes; it is imported when it is needed, and not before.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.ngram import NgramModel
from diffusiongpt.training.pieces import encode_texts, render_pairs
from diffusiongpt.training.quality import Ending, EndingShares, TextQuality, ending_shares, judge
from diffusiongpt.training.sources import open_records

if TYPE_CHECKING:
    from diffusiongpt.engine import Completion, Engine, Infill

# Policies and their knobs, from most forwards to fewest; steps are shares of the canvas.
CURVE: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("random", {"steps": 1.0}),
    ("random", {"steps": 0.5}),
    ("random", {"steps": 0.25}),
    ("confidence", {"steps": 1.0}),
    ("confidence", {"steps": 0.5}),
    ("entropy_bound", {"entropy_bound": 0.1}),
    ("entropy_bound", {"entropy_bound": 0.5}),
    ("entropy_bound", {"entropy_bound": 2.0}),
    ("threshold", {"threshold": 0.9}),
    ("threshold", {"threshold": 0.5}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One policy with one knob: what it costs and what it writes."""

    policy: str
    knob: str
    forwards: float  # per completion
    tokens_per_forward: float
    quality: TextQuality

    def __str__(self) -> str:
        return (
            f"{self.policy:14} {self.knob:18} {self.forwards:8.1f} {self.tokens_per_forward:6.2f} "
            f"{self.quality.perplexity:10.2f} {self.quality.unigram_entropy:8.3f} "
            f"{self.quality.distinct[2]:10.3f}"
        )


CURVE_HEADER = (
    f"{'policy':14} {'knob':18} {'forwards':>8} {'TPF':>6} {'perplexity':>10} {'entropy':>8} "
    f"{'distinct-2':>10}"
)


def load_engine(folder: str | Path) -> Engine:
    """The engine around an exported folder."""
    from diffusiongpt.engine import Engine, LoadError

    try:
        return Engine.from_pretrained(str(folder))
    except LoadError as error:
        raise ConfigError(str(error)) from error


def stop_ids_of(folder: str | Path) -> frozenset[int]:
    """The ids that end an answer, from an exported folder's diffusion section."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return frozenset(config["diffusion"]["stop_token_ids"])


def measure_endings(
    engine: Engine,
    tokenizer: Any,
    stop_ids: Collection[int],
    name: str,
    data_dir: str,
    max_tokens: int = 128,
    count: int = 64,
    seed: int = 0,
    canvases: Sequence[int] = (),
    block_length: int | None = None,
) -> EndingShares:
    """How answers to held-out chats end, against the answers that stand there.

    Args:
        name: as in `data.mix`. max_tokens: canvas of each answer; references that would not fit
            into it, and prompts that leave no room for it, are left out.
        canvases: others that the same chats must fit into, so that figures can be compared.
        block_length: what the answers are written by, as in `GenerationParams`.

    Raises:
        ConfigError: no chat fits.
    """
    pairs = list(render_pairs(_first(name, data_dir, 4 * count), tokenizer))
    prompts = encode_texts(tokenizer, [prompt for prompt, _ in pairs])
    answers = encode_texts(tokenizer, [answer for _, answer in pairs])
    room = engine.info.context_length - max(max_tokens, *canvases, 0)
    longest = min([max_tokens, *canvases])
    chosen = [
        (prompt, len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
        if 0 < len(answer) < longest and len(prompt) <= room
    ][:count]
    if not chosen:
        raise ConfigError(f"no answer of {name} fits into a canvas of max_tokens={max_tokens}")
    endings = []
    completions = _generate(
        engine,
        [prompt for prompt, _ in chosen],
        max_tokens,
        seed=seed,
        block_length=block_length,
    )
    for (_, reference), completion in zip(chosen, completions, strict=True):
        ids = completion.token_ids
        ended = completion.finish_reason.value == "stop"
        length = len(ids) - (1 if ids and ids[-1] in stop_ids else 0)
        endings.append(Ending(length=length, reference=reference, canvas=max_tokens, ended=ended))
    return ending_shares(endings)


def quality_curve(
    engine: Engine,
    tokenizer: Any,
    stop_ids: Collection[int],
    model: NgramModel,
    name: str,
    data_dir: str,
    max_tokens: int = 64,
    count: int = 32,
    prompt_tokens: int = 8,
    seed: int = 0,
) -> Iterator[CurvePoint]:
    """Continue held-out texts by each policy of CURVE; `model` judges what was written."""
    prompts = [ids[:prompt_tokens] for ids in _texts(tokenizer, name, data_dir, count)]
    for policy, knob in CURVE:
        values = {
            key: max(1, round(value * max_tokens)) if key == "steps" else value
            for key, value in knob.items()
        }
        written = _generate(engine, prompts, max_tokens, seed=seed, policy=policy, **values)
        texts = [[token for token in each.token_ids if token not in stop_ids] for each in written]
        forwards = sum(each.usage.nfe for each in written)
        yield CurvePoint(
            policy=policy,
            knob=", ".join(f"{key} {value:g}" for key, value in values.items()),
            forwards=forwards / len(written),
            tokens_per_forward=sum(map(len, texts)) / max(forwards, 1),
            quality=judge(texts, model),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillScore:
    """Shares of holes, and of tokens in them, that are filled with the very text."""

    spans: float
    tokens: float
    holes: int
    span_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.spans:.1%} of {self.holes} holes of {self.span_tokens} tokens are filled with "
            f"the very text, {self.tokens:.1%} of the tokens"
        )


def measure_infilling(
    engine: Engine,
    tokenizer: Any,
    name: str,
    data_dir: str,
    span_tokens: int = 4,
    context: int = 48,
    count: int = 64,
    seed: int = 0,
) -> InfillScore:
    """Cut `span_tokens` out of the middle of held-out texts and fill the holes greedily.

    Raises:
        ConfigError: no text is long enough, or the model never sees what follows a hole.
    """
    from diffusiongpt.engine import Hole, Infill

    generator = np.random.default_rng(seed)
    length = min(context, engine.info.context_length)
    texts = [ids[:length] for ids in _texts(tokenizer, name, data_dir, 4 * count)]
    texts = [ids for ids in texts if len(ids) >= span_tokens + 2][:count]
    if not texts:
        raise ConfigError(f"no text of {name} is longer than a span of {span_tokens} tokens")
    starts = [int(generator.integers(1, len(ids) - span_tokens)) for ids in texts]
    prompts = [
        Infill(ids[:start], Hole(span_tokens), ids[start + span_tokens :])
        for ids, start in zip(texts, starts, strict=True)
    ]
    greedy = {"policy": "confidence", "temperature": 0.0, "ignore_eos": True}
    written = _generate(engine, prompts, span_tokens, seed=seed, **greedy)
    right, exact = 0, 0
    for ids, start, completion in zip(texts, starts, written, strict=True):
        wanted = ids[start : start + span_tokens]
        got = list(completion.token_ids[:span_tokens])
        right += sum(one == other for one, other in zip(got, wanted, strict=False))
        exact += got == wanted
    return InfillScore(
        spans=exact / len(texts),
        tokens=right / (span_tokens * len(texts)),
        holes=len(texts),
        span_tokens=span_tokens,
    )


def _generate(
    engine: Engine, prompts: Sequence[Sequence[int] | Infill], max_tokens: int, **settings: Any
) -> list[Completion]:
    from diffusiongpt.engine import EngineError, GenerationParams, Infill

    given = [each if isinstance(each, Infill) else list(each) for each in prompts]
    try:
        return engine.generate(given, GenerationParams(max_tokens=max_tokens, **settings))
    except EngineError as error:
        raise ConfigError(str(error)) from error


def _texts(tokenizer: Any, name: str, data_dir: str, count: int) -> list[list[int]]:
    """Token ids of the first texts of a name in `data.mix`."""
    texts = [str(record["text"]) for record in _first(name, data_dir, count) if "text" in record]
    found = [ids for ids in encode_texts(tokenizer, texts) if len(ids) > 1]
    if not found:
        raise ConfigError(f"{name} must hold texts, got none")
    return found


def _first(name: str, data_dir: str, count: int) -> list[dict[str, Any]]:
    return list(islice(open_records(name, data_dir), count))
