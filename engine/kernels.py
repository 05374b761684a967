"""Which attention a forward has, recorded or not: chosen once at loading by model, type and
device, and by the plan where a kernel cannot hold every plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusiongpt.engine.attention_plan import PADDING_SEGMENT, AttentionPlan
from diffusiongpt.engine.cache import SlotCache
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.kept_segments import KeptSegments, KeptShape, MaskedKept, VarlenKept
from diffusiongpt.engine.pool import KeyPool
from diffusiongpt.engine.segments import MaskedSegments, Segments, VarlenSegments
from diffusiongpt.engine.varlen import has_varlen, head_size_of

# Gathered ranges of a layer: more would be memory and time that nobody reckons with.
_MOST_GATHERED = 2**30
# How far two kernels in 16 bits may be apart: some roundings of numbers around 1.
_TOLERANCE = 0.03

MakeSegments = Callable[[int], Segments]


def choose_segments(
    config: Any, dtype: torch.dtype, device: torch.device, *, has_blocks: bool
) -> type[MaskedSegments] | type[VarlenSegments]:
    """For canvases that are computed whole: the varlen kernel where it can do what the model
    needs, else one mask over the row.

    Args:
        config: of the class that transformers ships. has_blocks: the model is block-causal.
    """
    fits = not has_blocks and has_varlen(config, dtype, device)
    return VarlenSegments if fits else MaskedSegments


def choose_kept(
    config: Any, dtype: torch.dtype, device: torch.device
) -> type[MaskedKept] | type[VarlenKept]:
    """For requests with their keys in a pool: the varlen kernel where it reads ranges of it as
    we need, else ranges gathered under a mask."""
    fits = has_varlen(config, dtype, device, with_ranges=True)
    return VarlenKept if fits and reads_ranges(config, dtype, device) else MaskedKept


def make_plain(
    kind: type[MaskedSegments] | type[VarlenSegments], max_canvases: int, device: torch.device
) -> MakeSegments:
    """What holds plans of up to so many canvases, for a number of tokens."""
    return lambda num_tokens: kind(
        num_tokens, max_canvases + -(-num_tokens // PADDING_SEGMENT), device
    )


def make_kept(
    kind: type[MaskedKept] | type[VarlenKept], max_canvases: int, shape: KeptShape
) -> MakeSegments:
    """The same for plans of requests with their keys in a pool."""
    return lambda num_tokens: kind.of_tokens(num_tokens, max_canvases, shape)


def fit_buckets(
    kind: type[MaskedKept] | type[VarlenKept], buckets: tuple[int, ...], shape: KeptShape
) -> tuple[int, ...]:
    """The buckets whose gathered ranges fit the memory; raises LoadError if none do."""
    if kind is not MaskedKept:
        return buckets
    needed = {each: MaskedKept.num_bytes(each, shape) for each in buckets}
    fitting = tuple(each for each in buckets if needed[each] <= _MOST_GATHERED)
    if not fitting:
        raise LoadError(
            f"a recording of {buckets[0]} tokens would gather {needed[buckets[0]]} bytes of keys "
            f"in every layer, more than {_MOST_GATHERED}"
        )
    return fitting


def choose_eager(
    config: Any, dtype: torch.dtype, device: torch.device
) -> Callable[[AttentionPlan, KeptShape | None], AttentionPlan | Segments]:
    """How a forward that is not replayed attends, by its plan and the pool if there is one: by
    the varlen kernel where it can be used and holds the plan, else by tiles, as plans do."""
    if not has_varlen(config, dtype, device):
        return lambda plan, shape: plan

    def by_varlen(plan: AttentionPlan, shape: KeptShape | None) -> AttentionPlan | Segments:
        ways: list[VarlenSegments | VarlenKept] = [
            VarlenSegments(plan.num_tokens, len(plan.lengths), device, longest=max(plan.lengths))
        ]
        if shape is not None:
            ways.append(VarlenKept.of_tokens(plan.num_tokens, len(plan.lengths), shape))
        for way in ways:
            if way.way_of(plan) == "captured":
                way.load(plan)
                return way
        return plan

    return by_varlen


@torch.inference_mode()
def reads_ranges(config: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the varlen kernel, tried on a small pool, reads overlapping ranges in any order as
    gathering them under a mask does."""
    pool = new_pool(config, 256, num_scratch=8, num_layers=1, dtype=dtype, device=device)
    shape = KeptShape(pool=pool, shortest_block=8, longest_block=8, longest=128)
    early, late = (SlotCache(96, room=pool.take(96)) for _ in range(2))
    late.length = 64
    plan = AttentionPlan(lengths=(13, 40), block_lengths=(8, 8), caches=(late, early)).padded(64)
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    for buffer in pool.layers[0]:
        buffer.copy_(draw(*buffer.shape))
    num_key_heads, size = pool.layers[0][0].shape[1:]
    query, key, value = (
        draw(1, each, 64, size)
        for each in (config.num_attention_heads, num_key_heads, num_key_heads)
    )
    ways: list[KeptSegments] = [kind.of_tokens(64, 2, shape) for kind in (VarlenKept, MaskedKept)]
    for way in ways:
        way.load(plan)
    try:
        return all(
            _agree([way.attend(query, key, value, 0, size**-0.5, window)[0, :53] for way in ways])
            for window in (None, 5)
        )
    except RuntimeError:  # it does not take these arguments here
        return False


def _agree(outputs: Sequence[Tensor]) -> bool:
    one, other = (each.float() for each in outputs)
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)


def new_shape(
    config: Any,
    num_kept: int,
    block_lengths: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> KeptShape:
    """What recordings over a new pool of so many positions are made for."""
    longest_block = max(block_lengths)
    pool = new_pool(config, num_kept, num_scratch=longest_block, dtype=dtype, device=device)
    return KeptShape(
        pool=pool,
        shortest_block=min(block_lengths),
        longest_block=longest_block,
        longest=config.max_position_embeddings,
    )


def new_pool(
    config: Any,
    num_positions: int,
    *,
    num_scratch: int,
    dtype: torch.dtype,
    device: torch.device,
    num_layers: int | None = None,
) -> KeyPool:
    """A pool for the keys and values of a model, by its config; of fewer layers if asked."""
    return KeyPool(
        num_positions,
        num_scratch=num_scratch,
        num_layers=num_layers or config.num_hidden_layers,
        num_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_size=head_size_of(config),
        dtype=dtype,
        device=device,
    )
