"""A kernel that writes the fused head's noise down; imported where Triton is installed."""

import triton
import triton.language as tl

from diffusiongpt.engine.head_kernels import _gumbel


@triton.jit
def write_noise(
    keys,  # (N,) int64
    noise,  # (N, 1024) float32, written
    LANES: tl.constexpr,
):
    """The noise of one key."""
    key = tl.load(keys + tl.program_id(0) + tl.arange(0, 1))
    lane = tl.arange(0, LANES)
    place = tl.program_id(0) * LANES + lane[None, :]
    tl.store(noise + place, _gumbel(key, lane))
