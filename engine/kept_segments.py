"""Who sees whom where every request keeps its keys in the pool, in tensors of fixed shapes.

In a block-causal model all tokens of a block see the same keys: those of their request from its
start to the end of their block. So a row of packed tokens is cut into *pieces*, the tokens of one
block each; a layer puts the keys of all tokens into the pool, and then each piece reads a range
of it. Prompts, a block, a block with the one before it: pieces all. What recordings need of a
batch is then where tokens go, and for each piece which tokens it has and which range it reads.

Two ways, one chosen at loading, as in `segments.py`: the varlen kernel, told where ranges start
and how many keys of each are used, or SDPA over gathered ranges under a mask.

Legend: T packed tokens, S pieces at most, B tokens of the longest block, C longest range, N
positions of the pool, H heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusiongpt.engine.attention_plan import PADDING_SEGMENT, AttentionPlan
from diffusiongpt.engine.pool import KeyPool
from diffusiongpt.engine.upload import refill
from diffusiongpt.engine.varlen import varlen_attention


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` tokens of the row from `token` on, which see `used` keys from `start` of the pool;
    their own are the last of these."""

    token: int
    count: int
    start: int
    used: int

    @property
    def is_padding(self) -> bool:
        """Whether its keys lie in the pool's scratch, which is in front."""
        return self.start == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptShape:
    """What recordings over a pool are made for.

    Attributes:
        shortest, longest_block: of the block lengths that requests may have; `longest_block` is
            B, and the pool has scratch for as many tokens.
        longest: C, the positions that a request may have.
    """

    pool: KeyPool
    shortest_block: int
    longest_block: int
    longest: int


def pieces_of(plan: AttentionPlan, longest_block: int) -> Iterator[Piece]:
    """The pieces of a plan, in the order of its row; segments without a cache are padding."""
    token = 0
    blocks = plan.block_lengths or (plan.block_length,) * len(plan.lengths)
    caches = plan.caches or (None,) * len(plan.lengths)
    for length, own, cache in zip(plan.lengths, blocks, caches, strict=True):
        if cache is None or cache.room is None:
            for first in range(0, length, longest_block):
                count = min(longest_block, length - first)
                yield Piece(token + first, count, 0, count)
        else:
            block_length = own or cache.length + length
            first, end = cache.length, cache.length + length
            while first < end:
                stop = min(first - first % block_length + block_length, end)
                yield Piece(token + first - cache.length, stop - first, cache.room.start, stop)
                first = stop
        token += length


class KeptSegments(ABC):
    """Common to both ways: where the keys of each token go."""

    name: str

    def __init__(self, num_tokens: int, num_pieces: int, shape: KeptShape) -> None:
        self.num_tokens = num_tokens
        self.num_pieces = num_pieces
        self._shape = shape
        self._device = shape.pool.layers[0][0].device
        self._place = torch.zeros(num_tokens, dtype=torch.long, device=self._device)  # (T,)

    def way_of(self, plan: AttentionPlan) -> str:
        """One of `captured.WAYS`: "captured", or why this cannot hold a plan."""
        if any(each is not None for each in plan.shadows):
            return "eager_shadows"
        if not plan.caches or any(each is None for each in plan.caches):
            return "eager_uncached"
        if any(each is None or each.room is None for each in plan.caches):
            return "eager_cache"
        if plan.num_tokens > self.num_tokens:
            return "eager_tokens"
        num_pieces = sum(1 for _ in pieces_of(plan, self._shape.longest_block))
        return "captured" if num_pieces <= self._num_own_pieces else "eager_canvases"

    @property
    def _num_own_pieces(self) -> int:
        """Pieces that are left for a plan beside those of padding."""
        return self.num_pieces

    def load(self, plan: AttentionPlan) -> None:
        """Hold a plan of exactly T tokens; its segments without a cache are padding."""
        pieces = list(pieces_of(plan, self._shape.longest_block))
        counts = torch.tensor([piece.count for piece in pieces])
        first_token = torch.tensor([piece.token for piece in pieces])
        first_place = torch.tensor([piece.start + piece.used - piece.count for piece in pieces])
        moved = (first_place - first_token).repeat_interleave(counts)
        refill(self._place, torch.arange(self.num_tokens) + moved)
        self._load(pieces)

    @abstractmethod
    def begin(self) -> None:
        """A forward begins: nothing of the one before may be used again."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention (1, T, H, D) of heads (1, H, T, D); see `attention.packed_attention`."""
        keys, values = self._shape.pool.layers[layer]
        keys.index_copy_(0, self._place, key[0].transpose(0, 1))
        values.index_copy_(0, self._place, value[0].transpose(0, 1))
        return self._attend(query[0].transpose(0, 1), keys, values, scaling, window)[None]

    @abstractmethod
    def _load(self, pieces: list[Piece]) -> None: ...

    @abstractmethod
    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Attention (T, H, D) of queries (T, H, D) over the pool's keys and values (N, H, D)."""


class MaskedKept(KeptSegments):
    """One call of SDPA a layer: pieces are the rows of a batch, each with its range gathered
    from the pool, under a mask that is made once a forward for each window."""

    name = "mask"

    def __init__(self, num_tokens: int, num_pieces: int, shape: KeptShape) -> None:
        super().__init__(num_tokens, num_pieces, shape)

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.long, device=self._device)

        self._cells = zeros(num_pieces, shape.longest_block)  # (S, B) the token of each query
        self._cell = zeros(num_tokens)  # (T,) which of these a token is
        self._start, self._used = zeros(num_pieces), zeros(num_pieces)  # (S,) of the range
        self._first = zeros(num_pieces)  # (S,) position of the first query in the range
        self._key = torch.arange(shape.longest, device=self._device)  # (C,)
        self._query = torch.arange(shape.longest_block, device=self._device)  # (B,)
        self._ranges: Tensor | None = None
        self._masks: dict[int | None, Tensor] = {}

    @classmethod
    def of_tokens(cls, num_tokens: int, max_canvases: int, shape: KeptShape) -> MaskedKept:
        """For so many tokens, most of them in whole blocks: a row of the batch costs memory."""
        return cls(num_tokens, -(-num_tokens // shape.shortest_block), shape)

    @staticmethod
    def num_bytes(num_tokens: int, shape: KeptShape) -> int:
        """Memory that a layer's ranges and the mask take in a recording of so many tokens."""
        keys = shape.pool.layers[0][0]
        width = 2 * keys.shape[1] * keys.shape[2] + shape.longest_block
        return -(-num_tokens // shape.shortest_block) * shape.longest * width * keys.element_size()

    def _load(self, pieces: list[Piece]) -> None:
        """The pieces that are no padding; those that there are not read one key of scratch."""
        own = [piece for piece in pieces if not piece.is_padding]
        width = self._shape.longest_block
        cells = torch.zeros(self.num_pieces, width, dtype=torch.long)
        cell = torch.zeros(self.num_tokens, dtype=torch.long)
        columns = torch.zeros(3, self.num_pieces, dtype=torch.long)
        columns[1].fill_(1)
        for row, piece in enumerate(own):
            tokens = torch.arange(piece.token, piece.token + piece.count)
            cells[row, : piece.count] = tokens
            cell[tokens] = row * width + tokens - piece.token
            columns[:, row] = torch.tensor([piece.start, piece.used, piece.used - piece.count])
        refill(self._cells, cells)
        refill(self._cell, cell)
        for column, given in zip((self._start, self._used, self._first), columns, strict=True):
            refill(column, given)

    def begin(self) -> None:
        """Ranges and masks are made anew, by the operations that are recorded."""
        self._ranges = None
        self._masks.clear()

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        if self._ranges is None:
            self._ranges = self._find_ranges()
        if window not in self._masks:
            self._masks[window] = self._mask(window, query.dtype)
        shape = (*self._ranges.shape, *keys.shape[1:])  # (S, C, H, D)
        ranges = self._ranges.flatten()
        output = F.scaled_dot_product_attention(
            query[self._cells].transpose(1, 2),
            keys.index_select(0, ranges).view(shape).transpose(1, 2),
            values.index_select(0, ranges).view(shape).transpose(1, 2),
            attn_mask=self._masks[window],
            scale=scaling,
            enable_gqa=keys.shape[1] != query.shape[1],
        )
        return output.transpose(1, 2).flatten(0, 1)[self._cell]

    def _find_ranges(self) -> Tensor:
        """The pool's positions (S, C) of each piece's range. What is not used is read from
        scratch: hidden or not, a neighbour's keys must not be able to spoil anything."""
        used = self._key < self._used[:, None]
        return torch.where(used, self._start[:, None] + self._key, 0)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """The additive mask (S, 1, B, C) of layers that see so far."""
        seen = self._key < self._used[:, None, None]
        if window is not None:
            # Queries that a piece does not have stand where its last key is, and see that.
            position = (self._first[:, None] + self._query).minimum(self._used[:, None] - 1)
            seen = seen & ((position[:, :, None] - self._key).abs() < window)
        seen = seen.expand(-1, len(self._query), -1)[:, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
            ~seen, -torch.inf
        )


class VarlenKept(KeptSegments):
    """One call of PyTorch's varlen kernel a layer, which reads each piece's range where it lies.

    The kernel takes ends of sequences of keys, and reads `seqused_k` keys from each sequence's
    beginning; that sequences may overlap and come in any order is not in its documentation, so
    `reads_ranges` tries it before this is chosen.
    """

    name = "varlen"

    def __init__(self, num_tokens: int, num_pieces: int, shape: KeptShape) -> None:
        super().__init__(num_tokens, num_pieces, shape)
        self._ends = torch.zeros(num_pieces + 1, dtype=torch.int32, device=self._device)  # (S + 1,)
        self._starts = torch.zeros_like(self._ends)  # (S + 1,) of the ranges
        self._used = torch.zeros_like(self._ends[1:])  # (S,)

    @classmethod
    def of_tokens(cls, num_tokens: int, max_canvases: int, shape: KeptShape) -> VarlenKept:
        """For so many tokens of so many requests: pieces that there are not cost nothing."""
        whole = -(-num_tokens // shape.shortest_block)
        padding = _most_padding(num_tokens, shape.longest_block)
        return cls(num_tokens, whole + max_canvases + padding, shape)

    @property
    def _num_own_pieces(self) -> int:
        return self.num_pieces - _most_padding(self.num_tokens, self._shape.longest_block)

    def begin(self) -> None:
        """Nothing is kept from layer to layer."""

    def _load(self, pieces: list[Piece]) -> None:
        """Ends of the pieces' tokens, and their ranges; all others are empty."""
        columns = torch.zeros(3, self.num_pieces + 1, dtype=torch.int32)
        columns[0].fill_(self.num_tokens)
        columns[0, 0] = 0
        given = torch.tensor([[each.token + each.count, each.start, each.used] for each in pieces])
        columns[0, 1 : 1 + len(pieces)] = given[:, 0]
        columns[1, : len(pieces)] = given[:, 1]
        columns[2, : len(pieces)] = given[:, 2]
        refill(self._ends, columns[0])
        refill(self._starts, columns[1])
        refill(self._used, columns[2, :-1])

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        return varlen_attention(
            query,
            keys,
            values,
            self._ends,
            self._starts,
            max_q=self._shape.longest_block,
            max_k=self._shape.longest,
            scaling=scaling,
            window=window,
            used=self._used,
        )


def _most_padding(num_tokens: int, longest_block: int) -> int:
    """Pieces of a row that is nothing but padding."""
    return -(-num_tokens // PADDING_SEGMENT) * -(-PADDING_SEGMENT // longest_block)
