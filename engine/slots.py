"""The engine's fixed buffers: a slot is one row of each, and holds one request.

All that a denoising step reads or writes lives here, on the device, so that slots with other
lengths, steps, policies, temperatures and seeds go through the same tensor program.

Legend: S slots, C positions of the longest canvas, A slots of one batch, B biases of a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffusiongpt.engine.bias import BatchBias, BiasList, penalties
from diffusiongpt.engine.canvas import Canvas
from diffusiongpt.engine.commit import PolicyRows
from diffusiongpt.engine.params import MAX_BIASED
from diffusiongpt.engine.randomness import Purpose, counter_keys, uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotIntegers:
    """The whole numbers of a slot, in the order of their columns.

    `length` is the completion's; `step` counts the current block's denoising steps and `steps` is
    its budget; `block_start` and `block_end` are canvas positions; `blind`, `adaptive` and
    `timed` are 0 or 1.
    """

    prompt_length: int
    length: int
    seed: int
    top_k: int
    gap: int
    blind: int
    adaptive: int
    timed: int
    block_start: int = 0
    block_end: int = 0
    step: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReals:
    """The real numbers of a slot, in the order of their columns."""

    temperature: float
    top_p: float
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    confidence: float
    margin: float
    entropy: float
    hitting_time: float
    log_threshold: float
    factor: float
    entropy_bound: float


_INTEGERS = {field.name: column for column, field in enumerate(fields(SlotIntegers))}
_REALS = {field.name: column for column, field in enumerate(fields(SlotReals))}
_BLOCK = slice(_INTEGERS["block_start"], _INTEGERS["steps"] + 1)


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The scalars of the slots of one batch, (A,) each."""

    slot: Tensor
    prompt_length: Tensor
    length: Tensor
    seed: Tensor
    top_k: Tensor
    blind: Tensor
    block_start: Tensor
    block_end: Tensor
    step: Tensor
    steps: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    frequency_penalty: Tensor
    presence_penalty: Tensor
    policy: PolicyRows


class SlotTable:
    """Owns the buffers; `take` seats a request and `give_back` frees its row."""

    def __init__(self, num_slots: int, canvas_capacity: int, *, mask_token_id: int, device: str):
        self._mask_token_id = mask_token_id
        self._free = list(range(num_slots - 1, -1, -1))
        self.num_slots = num_slots
        self.canvas_capacity = canvas_capacity
        shape = (num_slots, canvas_capacity)
        self.ids = torch.full(shape, mask_token_id, dtype=torch.long, device=device)  # (S, C)
        self.masked = torch.zeros(shape, dtype=torch.bool, device=device)  # (S, C) still to fill
        self.hitting = torch.zeros(shape, dtype=torch.float32, device=device)  # (S, C) in [0, 1)
        biases = (num_slots, MAX_BIASED)
        self.bias_ids = torch.zeros(biases, dtype=torch.long, device=device)  # (S, B)
        self.bias_values = torch.zeros(biases, dtype=torch.float32, device=device)  # (S, B)
        self.integers = torch.zeros(num_slots, len(_INTEGERS), dtype=torch.long, device=device)
        self.reals = torch.zeros(num_slots, len(_REALS), dtype=torch.float32, device=device)

    @property
    def num_free(self) -> int:
        """Slots that hold no request."""
        return len(self._free)

    def take(
        self,
        canvas: Canvas,
        integers: SlotIntegers,
        reals: SlotReals,
        bias: Sequence[tuple[int, float]] = (),
    ) -> int:
        """Seat a request: what is given of its canvas, and masks. Returns the slot.

        Args:
            bias: token ids and what is added to their logits.
        """
        slot = self._free.pop()
        device = self.ids.device
        length = len(canvas.region)
        start, end = len(canvas.prompt), len(canvas.prompt) + length
        whole = (*canvas.prompt, *canvas.region, *canvas.suffix)
        mask = self._mask_token_id
        ids = [mask if each is None else each for each in whole]
        self.ids[slot].fill_(mask)
        self.ids[slot, : len(ids)] = torch.tensor(ids, dtype=torch.long, device=device)
        self.masked[slot].fill_(False)
        masked = [each is None for each in canvas.region]
        self.masked[slot, start:end] = torch.tensor(masked, device=device)
        self.integers[slot] = torch.tensor(_values(integers), dtype=torch.long, device=device)
        self.reals[slot] = torch.tensor(_values(reals), dtype=torch.float32, device=device)
        self._set_bias(slot, bias)
        positions = torch.arange(length, device=device)
        seed = self.integers[slot, _INTEGERS["seed"]]
        self.hitting[slot, start:end] = uniform(counter_keys(seed, Purpose.ORDER, positions))
        return slot

    def _set_bias(self, slot: int, bias: Sequence[tuple[int, float]]) -> None:
        self.bias_ids[slot].fill_(0)
        self.bias_values[slot].fill_(0.0)
        if bias:
            ids, values = zip(*bias, strict=True)
            self.bias_ids[slot, : len(bias)] = self.bias_ids.new_tensor(ids)
            self.bias_values[slot, : len(bias)] = self.bias_values.new_tensor(values)

    def give_back(self, slot: int) -> None:
        """Free a slot; its buffers are cleared when it is taken again."""
        self._free.append(slot)

    def enter_block(self, slot: int, start: int, end: int, steps: int) -> None:
        """Point a slot at the block of canvas positions start..end, to be filled in `steps`."""
        self.integers[slot, _BLOCK] = torch.tensor([start, end, 0, steps], device=self.ids.device)

    def set_step(self, slots: Tensor, step: Tensor) -> None:
        """Record the step (A,) that each slot (A,) has reached in its block."""
        self.integers[slots, _INTEGERS["step"]] = step

    def rows(self, slots: Sequence[int]) -> SlotRows:
        """The scalars of the given slots, in their order."""
        slot = torch.tensor(slots, dtype=torch.long, device=self.ids.device)
        integers = dict(zip(_INTEGERS, self.integers[slot].unbind(dim=1), strict=True))
        reals = dict(zip(_REALS, self.reals[slot].unbind(dim=1), strict=True))
        policy = PolicyRows(
            confidence=reals["confidence"],
            margin=reals["margin"],
            entropy=reals["entropy"],
            hitting_time=reals["hitting_time"],
            log_threshold=reals["log_threshold"],
            factor=reals["factor"],
            entropy_bound=reals["entropy_bound"],
            adaptive=integers["adaptive"].bool(),
            timed=integers["timed"].bool(),
            gap=integers["gap"],
        )
        return SlotRows(
            slot=slot,
            prompt_length=integers["prompt_length"],
            length=integers["length"],
            seed=integers["seed"],
            top_k=integers["top_k"],
            blind=integers["blind"].bool(),
            block_start=integers["block_start"],
            block_end=integers["block_end"],
            step=integers["step"],
            steps=integers["steps"],
            temperature=reals["temperature"],
            top_p=reals["top_p"],
            min_p=reals["min_p"],
            frequency_penalty=reals["frequency_penalty"],
            presence_penalty=reals["presence_penalty"],
            policy=policy,
        )

    def bias(self, rows: SlotRows, *, num_biased: int, num_penalized: int) -> BatchBias:
        """What the slots of a batch add to their logits, as their canvases stand.

        Args:
            num_biased: ids of the longest list of biases. num_penalized: positions of the
                longest completion with a penalty. Where one is 0 nobody asks for it.
        """
        lists = []
        if num_biased:
            ids = self.bias_ids[rows.slot, :num_biased]
            lists.append(BiasList(ids, self.bias_values[rows.slot, :num_biased]))
        if num_penalized:
            offset = torch.arange(num_penalized, device=self.ids.device)
            inside = offset < rows.length[:, None]
            position = (rows.prompt_length[:, None] + offset).clamp(max=self.canvas_capacity - 1)
            slot = rows.slot[:, None]
            held = inside & ~self.masked[slot, position]
            ids = self.ids[slot, position]
            lists.append(penalties(ids, held, rows.frequency_penalty, rows.presence_penalty))
        return BatchBias(tuple(lists))


def _values(record: SlotIntegers | SlotReals) -> list[float]:
    return [getattr(record, field.name) for field in fields(record)]
