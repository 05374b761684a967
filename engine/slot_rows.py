"""The numbers of a slot: one row of whole ones and one of real ones, whose columns have names.

Legend: S slots, A slots of one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from diffusiongpt.engine.commit import PolicyRows
from diffusiongpt.engine.revise import RevisionRows


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
# The column of each field.
INTEGERS = {field.name: column for column, field in enumerate(fields(SlotIntegers))}
REALS = {field.name: column for column, field in enumerate(fields(SlotReals))}


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


def values_of(record: SlotIntegers | SlotReals) -> list[float]:
    """The numbers of a record, in the order of their columns."""
    return [getattr(record, field.name) for field in fields(record)]


def rows_of(integers: Tensor, reals: Tensor, slot: Tensor) -> SlotRows:
    """The scalars of the given slots (A,), in their order.

    Args:
        integers: (S, columns of SlotIntegers). reals: (S, columns of SlotReals).
    """
    columns = dict(zip(INTEGERS, integers[slot].unbind(dim=1), strict=True))
    columns |= zip(REALS, reals[slot].unbind(dim=1), strict=True)
    columns |= {name: columns[name].bool() for name in _FLAGS}
    columns["slot"] = slot
    return SlotRows(
        policy=PolicyRows(**_pick(PolicyRows, columns)),
        revision=RevisionRows(**_pick(RevisionRows, columns)),
        **_pick(SlotRows, columns),
    )


def _pick(record: type, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """The columns that a record of rows has fields for."""
    return {each.name: columns[each.name] for each in fields(record) if each.name in columns}
