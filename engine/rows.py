"""What the head is asked of its rows, and what it answers: records of tensors with a row for each
position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows:
    """A record of tensors with a row for each position; those that nobody asked for are None."""

    __slots__ = ()

    def at(self, which: slice | Tensor) -> Self:
        """Some of the rows: a slice, or (R,) bool."""
        columns = (getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]
        return type(self)(*(None if each is None else each[which] for each in columns))

    def columns(self) -> list[Tensor]:
        """The tensors that there are."""
        every = (getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]
        return [each for each in every if each is not None]

    def to_host(self) -> Self:
        """The same on the host."""
        columns = (getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]
        return type(self)(*(None if each is None else each.cpu() for each in columns))

    def padded(self, count: int) -> Self:
        """The rows and `count` more of zeros; of records of (R,) columns."""
        columns = (getattr(self, each.name) for each in fields(self))  # type: ignore[arg-type]
        return type(self)(*(F.pad(each, (0, count)) for each in columns))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, of which there is at least one."""
        if len(parts) == 1:
            return parts[0]
        names = [each.name for each in fields(cls)]  # type: ignore[arg-type]
        columns = ([getattr(part, name) for part in parts] for name in names)
        return cls(*(None if each[0] is None else torch.cat(each) for each in columns))


@dataclass(frozen=True, slots=True)
class RowStatistics(Rows):
    """What a policy may know of a position's distribution, at temperature 1 and after bans.

    Attributes:
        log_top: (R,) log of the top probability. margin: (R,) top-1 less top-2 probability.
        entropy: (R,) nats. top_id: (R,) int64, the most likely token.
        log_held: (R,) log-probability of the token that the position holds.
    """

    log_top: Tensor
    margin: Tensor
    entropy: Tensor
    top_id: Tensor
    log_held: Tensor


@dataclass(frozen=True, slots=True)
class Draws(Rows):
    """Drawn tokens: `token_id` (R,) int64, `log_prob` (R,) at temperature 1 and after bans.

    `top_id` and `top_log_prob` (R, K) are the most likely tokens, best first, where asked for.
    """

    token_id: Tensor
    log_prob: Tensor
    top_id: Tensor | None = None
    top_log_prob: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DrawParams(Rows):
    """Per-row parameters of the token draw; `key` is the row's counter key (int64)."""

    key: Tensor
    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    min_p: Tensor
