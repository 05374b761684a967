"""One batch as the model sees it, to be read before a run: inputs, targets, weights, masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from diffusiongpt.training.config import TrainingConfig
from diffusiongpt.training.forward import corruption_of, edit_tokens_of


def explain_batch(
    config: TrainingConfig, dataset: Iterable[dict[str, Tensor]], tokenizer: Any, step: int = 0
) -> Iterator[str]:
    """Lines that show the first rows of a data set as step `step` would corrupt them.

    The first row position by position, then every row as text.
    """
    rows = list(islice(dataset, config.run.batch_size))
    count = len(rows)
    inputs = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    drawn = corruption_of(inputs, config, edit_tokens_of(tokenizer), step, 0, count)
    noisy, targets, visible = _seen(inputs, drawn, tokenizer.mask_token_id)
    yield f"step {step}, {count} rows of {noisy.shape[1]} positions"
    yield f"{'position':>8} {'segment':>7} {'role':8} {'weight':>8}  {'input':16} target"
    for position in range(noisy.shape[1]):
        masked, edit = bool(drawn["masked"][0, position]), bool(visible[0, position])
        weight = float(drawn["weights"][0, position])
        if edit:
            weight = float(torch.as_tensor(drawn["visible_weight"]).expand_as(visible)[0, position])
        role = "masked" if masked else "visible" if edit else "given"
        if not inputs["segments"][0, position]:
            role = "padding"
        seen = _token(tokenizer, noisy[0, position])
        target = _token(tokenizer, targets[0, position]) if masked or edit else ""
        segment = int(inputs["segments"][0, position])
        yield f"{position:8} {segment:7} {role:8} {weight:8.3f}  {seen:16} {target}".rstrip()
    for row in range(count):
        used = inputs["segments"][row] > 0
        yield f"row {row} input:  {tokenizer.decode(noisy[row][used])!r}"
        yield f"row {row} target: {tokenizer.decode(targets[row][used])!r}"


def _seen(
    inputs: dict[str, Tensor], drawn: dict[str, Any], mask_token_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What stands in the canvas, what should, and which visible positions are targets."""
    if "noisy" in drawn:
        return drawn["noisy"], drawn["targets"], drawn["visible"]
    noisy = inputs["tokens"].masked_fill(drawn["masked"], mask_token_id)
    return noisy, inputs["tokens"], torch.zeros_like(drawn["masked"])


def _token(tokenizer: Any, token_id: Tensor) -> str:
    return repr(tokenizer.decode([int(token_id)]))
