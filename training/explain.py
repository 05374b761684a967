"""One batch as the model sees it, to be read before a run: inputs, targets, weights, masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusiongpt.training.config import TrainingConfig
from diffusiongpt.training.forward import corruption_of, edit_tokens_of


class Seen(NamedTuple):
    """What a batch says to the model and asks of it, all (B, L).

    Attributes:
        noisy: what stands in the canvas. targets: what the model shall say at a position.
        masked, visible: positions that are targets. weights: of their losses.
    """

    noisy: Tensor
    targets: Tensor
    masked: Tensor
    visible: Tensor
    weights: Tensor


def explain_batch(
    config: TrainingConfig, batch: dict[str, Tensor], tokenizer: Any, step: int = 0
) -> Iterator[str]:
    """Lines that show what a step reads first, as that step corrupts it.

    The first row position by position, then every row as text, by its number in the data.
    """
    inputs = {key: batch[key] for key in ("tokens", "segments", "maskable")}
    numbers = batch["row"].tolist()
    seen = see(config, inputs, tokenizer, step)
    length, named = batch["tokens"].shape[1], ", ".join(map(str, numbers))
    yield f"step {step}, {len(numbers)} rows of {length} positions: {named} of the data"
    yield f"{'position':>8} {'segment':>7} {'role':8} {'weight':>8}  {'input':16} target"
    for position in range(length):
        yield _position(config, inputs, seen, position, tokenizer)
    for row, number in enumerate(numbers):
        used = inputs["segments"][row] > 0
        yield f"row {number} input:  {tokenizer.decode(seen.noisy[row][used])!r}"
        yield f"row {number} target: {tokenizer.decode(seen.targets[row][used])!r}"


def see(config: TrainingConfig, inputs: dict[str, Tensor], tokenizer: Any, step: int) -> Seen:
    """The corruption of a step's first rows, in the objective's terms."""
    tokens, nothing = inputs["tokens"], torch.zeros_like(inputs["maskable"])
    rows = config.run.batch_size * config.run.gradient_accumulation_steps
    drawn = corruption_of(inputs, config, edit_tokens_of(tokenizer), step, 0, rows)
    masked, weights = drawn["masked"], drawn["weights"]
    of_visible = torch.as_tensor(drawn["visible_weight"]).expand_as(weights)
    if config.diffusion.objective == "causal":
        segments = inputs["segments"]
        asked = nothing.clone()
        asked[:, :-1] = inputs["maskable"][:, 1:] & (segments[:, 1:] == segments[:, :-1])
        return Seen(tokens, tokens.roll(-1, 1), nothing, asked, of_visible.roll(-1, 1) * asked)
    if "noisy" not in drawn:
        noisy = tokens.masked_fill(masked, tokenizer.mask_token_id)
        return Seen(noisy, tokens, masked, nothing, weights)
    weights = torch.where(drawn["visible"], of_visible, weights)
    return Seen(drawn["noisy"], drawn["targets"], masked, drawn["visible"], weights)


def _position(
    config: TrainingConfig, inputs: dict[str, Tensor], seen: Seen, position: int, tokenizer: Any
) -> str:
    """One position of the first row."""
    masked, visible = bool(seen.masked[0, position]), bool(seen.visible[0, position])
    role = "masked" if masked else "visible" if visible else "given"
    if visible and config.diffusion.objective == "causal":
        role = "next"
    segment = int(inputs["segments"][0, position])
    if not segment:
        role = "padding"
    said = _token(tokenizer, seen.noisy[0, position])
    target = _token(tokenizer, seen.targets[0, position]) if masked or visible else ""
    weight = float(seen.weights[0, position])
    return f"{position:8} {segment:7} {role:8} {weight:8.3f}  {said:16} {target}".rstrip()


def _token(tokenizer: Any, token_id: Tensor) -> str:
    return repr(tokenizer.decode([int(token_id)]))
