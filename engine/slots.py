"""The engine's fixed buffers: a slot is one row of each, and holds one request.

All that a denoising step reads or writes lives here, on the device, so that slots with other
lengths, steps, policies, temperatures and seeds go through the same tensor program.

Legend: S slots, C positions of the longest canvas and two more, A slots of one batch, B biases of
a slot.
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
from diffusiongpt.engine.policies import MAX_ROUNDS
from diffusiongpt.engine.randomness import Purpose, counter_keys, uniform
from diffusiongpt.engine.revise import RevisionRows, state_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotIntegers:
    """The whole numbers of a slot, in the order of their columns.

    `length` is the completion's; `step` counts the current block's denoising steps and `steps` is
    its budget; `round` counts how often the block was looked at again when it was full;
    `num_committed` is what the step before committed in it;
    `block_start` and `block_end` are canvas positions; those in `_FLAGS` are 0 or 1.
    """

    prompt_length: int
    length: int
    seed: int
    top_k: int
    gap: int
    blind: int
    adaptive: int
    timed: int
    max_per_step: int
    max_least: int
    stable: int
    looks_back: int
    shadowed: int
    planned: int
    tosses: int
    remask_rescaled: int
    max_rounds: int
    block_start: int = 0
    block_end: int = 0
    step: int = 0
    steps: int = 0
    round: int = 0
    num_committed: int = 0


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
    position_bias: float
    credit: float
    log_threshold: float
    factor: float
    entropy_bound: float
    max_share: float
    log_edit_threshold: float
    log_edit_margin: float
    log_doubt: float
    remask: float
    remask_confidence: float
    loop_start: float
    loop_end: float
    loop_alpha: float


NUM_CREDITS = 4  # tokens with credit, of each position
_FLAGS = (
    "blind",
    "adaptive",
    "timed",
    "looks_back",
    "shadowed",
    "planned",
    "tosses",
    "remask_rescaled",
)
_INTEGERS = {field.name: column for column, field in enumerate(fields(SlotIntegers))}
_REALS = {field.name: column for column, field in enumerate(fields(SlotReals))}
_BLOCK = slice(_INTEGERS["block_start"], _INTEGERS["num_committed"] + 1)
_STEP, _ROUND, _NUM_COMMITTED = (_INTEGERS[name] for name in ("step", "round", "num_committed"))


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The scalars of the slots of one batch, (A,) each."""

    slot: Tensor
    prompt_length: Tensor
    length: Tensor
    seed: Tensor
    top_k: Tensor
    blind: Tensor
    looks_back: Tensor
    block_start: Tensor
    block_end: Tensor
    step: Tensor
    steps: Tensor
    round: Tensor
    num_committed: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    frequency_penalty: Tensor
    presence_penalty: Tensor
    policy: PolicyRows
    revision: RevisionRows


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
        shape = (num_slots, canvas_capacity + 2)
        self.ids = torch.full(shape, mask_token_id, dtype=torch.long, device=device)  # (S, C)
        self.masked = torch.zeros(shape, dtype=torch.bool, device=device)  # (S, C) still to fill
        self.hitting = torch.zeros(shape, dtype=torch.float32, device=device)  # (S, C) in [0, 1)
        self.revisable = torch.zeros(
            shape, dtype=torch.bool, device=device
        )  # (S, C) ours to change
        self.last_top = torch.full(shape, -1, dtype=torch.long, device=device)  # (S, C) top token
        self.stable_for = torch.zeros(shape, dtype=torch.long, device=device)  # (S, C) steps
        credits = (*shape, NUM_CREDITS)
        self.credit_ids = torch.zeros(credits, dtype=torch.long, device=device)
        self.credit = torch.zeros(credits, dtype=torch.float32, device=device)
        self.confidence = torch.zeros(shape, dtype=torch.float32, device=device)  # (S, C) at commit
        self.visit = torch.zeros(shape, dtype=torch.long, device=device)  # (S, C) times remasked
        self.seen = torch.zeros(num_slots, MAX_ROUNDS + 1, dtype=torch.long, device=device)
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
        self.integers[slot] = torch.tensor(_values(integers), dtype=torch.long, device=device)
        self.reals[slot] = torch.tensor(_values(reals), dtype=torch.float32, device=device)
        self._set_bias(slot, bias)
        positions = torch.arange(length, device=device)
        seed = self.integers[slot, _INTEGERS["seed"]]
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
        columns = dict(zip(_INTEGERS, self.integers[slot].unbind(dim=1), strict=True))
        columns |= zip(_REALS, self.reals[slot].unbind(dim=1), strict=True)
        columns |= {name: columns[name].bool() for name in _FLAGS}
        columns["slot"] = slot
        return SlotRows(
            policy=PolicyRows(**_pick(PolicyRows, columns)),
            revision=RevisionRows(**_pick(RevisionRows, columns)),
            **_pick(SlotRows, columns),
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


def _put(buffer: Tensor, slot: Tensor, position: Tensor, value: float) -> None:
    """Give positions (N,) of slots (N,) one value; a number of the host, assigned as it is, would
    be copied to the device, which waits."""
    buffer[slot, position] = buffer.new_full((), value)


def _pick(record: type, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """The columns that a record of rows has fields for."""
    return {each.name: columns[each.name] for each in fields(record) if each.name in columns}


def _values(record: SlotIntegers | SlotReals) -> list[float]:
    return [getattr(record, field.name) for field in fields(record)]
