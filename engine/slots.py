"""The engine's fixed buffers: a slot is one row of each, and holds one request.

All that a denoising step reads or writes lives here, on the device, so that slots with other
lengths, steps, policies, temperatures and seeds go through the same tensor program.

Legend: S slots, C positions of the longest canvas and two more, A slots of one batch, B biases of
a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from diffusiongpt.engine.bias import BatchBias, BiasList, penalties
from diffusiongpt.engine.canvas import Canvas
from diffusiongpt.engine.params import MAX_BIASED
from diffusiongpt.engine.policies import MAX_ROUNDS
from diffusiongpt.engine.randomness import Purpose, counter_keys, uniform
from diffusiongpt.engine.revise import state_keys
from diffusiongpt.engine.slot_rows import (
    INTEGERS,
    REALS,
    SlotIntegers,
    SlotReals,
    SlotRows,
    rows_of,
    values_of,
)

NUM_CREDITS = 4  # tokens with credit, of each position
_BLOCK = slice(INTEGERS["block_start"], INTEGERS["num_committed"] + 1)
_STEP, _ROUND, _NUM_COMMITTED = (INTEGERS[name] for name in ("step", "round", "num_committed"))


class SlotTable:
    """Owns the buffers; `take` seats a request and `give_back` frees its row."""

    def __init__(self, num_slots: int, canvas_capacity: int, *, mask_token_id: int, device: str):
        self.mask_token_id = mask_token_id
        self._free = list(range(num_slots - 1, -1, -1))
        self.num_slots = num_slots
        self.canvas_capacity = canvas_capacity
        # What is written to no position goes to one behind all canvases, so that nothing has to
        # be counted before it is written.
        self.nowhere = canvas_capacity
        # Behind that stands a mask that nobody ever fills, for tokens of no canvas.
        self.blank = canvas_capacity + 1
        integers, reals, flags = (
            partial(torch.zeros, dtype=dtype, device=device)
            for dtype in (torch.long, torch.float32, torch.bool)
        )
        canvases = (num_slots, canvas_capacity + 2)
        self.ids = integers(canvases).fill_(mask_token_id)  # (S, C)
        self.masked = flags(canvases)  # (S, C) still to fill
        self.hitting = reals(canvases)  # (S, C) in [0, 1)
        self.revisable = flags(canvases)  # (S, C) ours to change
        self.last_top = integers(canvases).fill_(-1)  # (S, C) top token
        self.stable_for = integers(canvases)  # (S, C) steps
        self.credit_ids = integers(*canvases, NUM_CREDITS)
        self.credit = reals(*canvases, NUM_CREDITS)
        self.confidence = reals(canvases)  # (S, C) at commit
        self.visit = integers(canvases)  # (S, C) times remasked
        self.seen = integers(num_slots, MAX_ROUNDS + 1)  # keys of a block's states
        self.bias_ids = integers(num_slots, MAX_BIASED)  # (S, B)
        self.bias_values = reals(num_slots, MAX_BIASED)  # (S, B)
        self.integers = integers(num_slots, len(INTEGERS))
        self.reals = reals(num_slots, len(REALS))

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
        slot = self._free[-1]
        device = self.ids.device
        length = len(canvas.region)
        start, end = len(canvas.prompt), len(canvas.prompt) + length
        whole = (*canvas.prompt, *canvas.region, *canvas.suffix)
        mask = self.mask_token_id
        ids = [mask if each is None else each for each in whole]
        self.ids[slot].fill_(mask)
        self.ids[slot, : len(ids)] = torch.tensor(ids, dtype=torch.long, device=device)
        self.masked[slot].fill_(False)
        masked = [each is None for each in canvas.region]
        self.masked[slot, start:end] = torch.tensor(masked, device=device)
        self.revisable[slot] = self.masked[slot]
        self.visit[slot].fill_(0)
        self.last_top[slot].fill_(-1)
        self.credit[slot].fill_(0.0)
        self.integers[slot] = torch.tensor(values_of(integers), dtype=torch.long, device=device)
        self.reals[slot] = torch.tensor(values_of(reals), dtype=torch.float32, device=device)
        self._set_bias(slot, bias)
        positions = torch.arange(length, device=device)
        seed = self.integers[slot, INTEGERS["seed"]]
        self.hitting[slot, start:end] = uniform(counter_keys(seed, Purpose.ORDER, positions))
        self._free.pop()  # last, so that nothing is taken where anything fails
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
        block = torch.tensor([start, end, 0, steps, 0, 0], device=self.ids.device)
        self.integers[slot, _BLOCK] = block

    def note_state(self, slot: int, start: int, end: int) -> None:
        """Remember the tokens of a block that is full when it begins, to know them again."""
        ids = self.ids[slot, None, start:end]
        self.seen[slot, 0] = state_keys(ids, torch.ones_like(ids, dtype=torch.bool))[0]

    def place(
        self,
        slot: int,
        positions: Sequence[int],
        token_ids: Sequence[int],
        confidence: Sequence[float],
    ) -> None:
        """Fill canvas positions of a slot, ours to change as any that a step fills."""
        position = self.ids.new_tensor(positions)
        values = self.confidence.new_tensor(confidence)
        slots = torch.full_like(position, slot)
        self.write(slots, position, self.ids.new_tensor(token_ids), values)

    def write(self, slot: Tensor, position: Tensor, token_id: Tensor, confidence: Tensor) -> None:
        """Give positions (N,) of slots (N,) their tokens."""
        self.ids[slot, position] = token_id
        _put(self.masked, slot, position, False)
        self.confidence[slot, position] = confidence
        self._forget(slot, position)

    def write_given(self, slot: int, positions: Sequence[int], token_ids: Sequence[int]) -> None:
        """Give canvas positions of a slot their tokens, which are certain."""
        position = self.ids.new_tensor(positions)
        certain = torch.ones(len(token_ids), device=self.ids.device)
        row = torch.full_like(position, slot)
        self.write(row, position, position.new_tensor(token_ids), certain)

    def mask_again(self, slot: Tensor, position: Tensor) -> None:
        """Put the mask back on positions (N,) of slots (N,), no pair twice; a new visit begins."""
        _put(self.ids, slot, position, self.mask_token_id)
        _put(self.masked, slot, position, True)
        self.visit[slot, position] += 1
        self._forget(slot, position)

    def _forget(self, slot: Tensor, position: Tensor) -> None:
        """Drop what earlier steps thought of positions (N,) of slots (N,)."""
        _put(self.last_top, slot, position, -1)
        _put(self.credit, slot, position, 0.0)

    def set_progress(
        self, slots: Tensor, step: Tensor, round: Tensor, num_committed: Tensor
    ) -> None:
        """Record the step and the round (A,) that each slot (A,) has reached in its block, and what
        this step committed there."""
        self.integers[slots, _STEP] = step
        self.integers[slots, _ROUND] = round
        self.integers[slots, _NUM_COMMITTED] = num_committed

    def rows(self, slot: Tensor) -> SlotRows:
        """The scalars of the given slots (A,), in their order."""
        return rows_of(self.integers, self.reals, slot)

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


def _put(buffer: Tensor, slot: Tensor, position: Tensor, value: float) -> None:
    """Give positions (N,) of slots (N,) one value; a number of the host, assigned as it is, would
    be copied to the device, which waits."""
    buffer[slot, position] = buffer.new_full((), value)
