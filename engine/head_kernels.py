"""The kernels of the fused head, in Triton's language; the one module that imports it.

A program has ROWS rows of hidden states and one *share* of the vocabulary, which it walks tile by
tile of COLUMNS tokens. A tile's logits live in registers and are folded into what is asked of the
rows at once: no (rows, vocabulary) tensor exists. A second, small kernel folds the shares into
one answer, by the same rules.

Sums of exponentials are kept relative to the largest logit so far (Milakov and Gimelshein,
arXiv 1805.02867), and with them sum((z - top) exp(z - top)), from which the entropy is
log(total) - moment / total. Of equal logits the one with the least token id counts, as in
`torch.argmax`: within a tile by the order of columns, beyond it because only more is better.

Legend: R rows, S shares, V vocabulary, H hidden size; z logits.
"""

import triton
import triton.language as tl

from diffusiongpt.engine import randomness
from diffusiongpt.engine.sampling import BANNED

# Whether kernels are interpreted (TRITON_INTERPRET=1), which runs them on the CPU.
IS_INTERPRETED = bool(triton.knobs.runtime.interpret)

_BANNED = tl.constexpr(BANNED)
# Below every logit; finite, because -inf - -inf would be nan.
_LOWEST = tl.constexpr(-3e38)
# The same hash as in `randomness.py`, in unsigned integers, whose shifts are logical.
_LANE_STEP = tl.constexpr(randomness.LANE_STEP % 2**32)
_LANE_A = tl.constexpr(randomness.LANE_A % 2**32)
_LANE_B = tl.constexpr(randomness.LANE_B % 2**32)
_UNIT = tl.constexpr(randomness.UNIT)
_ALMOST_ONE = tl.constexpr(randomness.ALMOST_ONE)


@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def measure_shares(
    hidden,  # (R, H)
    weight,  # (V, H)
    bias,  # (V,) or None
    banned,  # (V,) uint8
    may_delete,  # (R,) uint8 or None
    held,  # (R,) int64
    sums,  # (5, S, R) float32, written: top, second, total, moment, logit of the held token
    ids,  # (S, R) int32, written: the top token
    num_rows,
    num_tiles,  # of a share
    VOCABULARY: tl.constexpr,
    HIDDEN: tl.constexpr,
    DELETE_ID: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """What `join_measures` makes a row's statistics of, of one share."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    held_id = tl.load(held + row, mask=row < num_rows, other=0)
    top = tl.full((ROWS,), _LOWEST, tl.float32)
    second = tl.full((ROWS,), _LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    held_logit = tl.zeros((ROWS,), tl.float32)
    top_id = tl.zeros((ROWS,), tl.int32)
    for tile in range(num_tiles):
        start = (tl.program_id(1) * num_tiles + tile) * COLUMNS
        column = start + tl.arange(0, COLUMNS)
        z = _logits(hidden, weight, bias, row, column, num_rows, VOCABULARY, HIDDEN, INNER)
        z = _without_banned(z, banned, may_delete, row, column, num_rows, VOCABULARY, DELETE_ID)
        tile_top, place = tl.max(z, 1, return_indices=True)
        is_top = tl.arange(0, COLUMNS)[None, :] == place[:, None]
        tile_second = tl.max(tl.where(is_top, _LOWEST, z), 1)
        held_logit += tl.sum(tl.where(column[None, :] == held_id[:, None], z, 0.0), 1)
        top_id = tl.where(tile_top > top, start + place, top_id)
        # A token is its own top, and counts 1.
        top, second, total, moment = _fold_measures(
            top, second, total, moment, tile_top, tile_second, z, 1.0, 0.0
        )
    size = tl.num_programs(1) * num_rows
    cell = tl.program_id(1) * num_rows + row
    tl.store(sums + cell, top, mask=row < num_rows)
    tl.store(sums + size + cell, second, mask=row < num_rows)
    tl.store(sums + 2 * size + cell, total, mask=row < num_rows)
    tl.store(sums + 3 * size + cell, moment, mask=row < num_rows)
    tl.store(sums + 4 * size + cell, held_logit, mask=row < num_rows)
    tl.store(ids + cell, top_id, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_shares"])
def join_measures(
    sums,  # (5, S, R) float32
    ids,  # (S, R) int32
    statistics,  # (4, R) float32, written: log_top, margin, entropy, log_held
    top_ids,  # (R,) int64, written
    num_rows,
    num_shares,
    VOCABULARY: tl.constexpr,
    ROWS: tl.constexpr,
    SHARES: tl.constexpr,
):
    """A row's statistics, of all its shares, SHARES at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    size = num_shares * num_rows
    top = tl.full((ROWS,), _LOWEST, tl.float32)
    second = tl.full((ROWS,), _LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    held_logit = tl.zeros((ROWS,), tl.float32)
    top_id = tl.zeros((ROWS,), tl.int32)
    for start in range(0, num_shares, SHARES):
        share = start + tl.arange(0, SHARES)
        cell = share[None, :] * num_rows + row[:, None]
        is_one = (share < num_shares)[None, :] & (row < num_rows)[:, None]
        tops = tl.load(sums + cell, mask=is_one, other=_LOWEST)
        seconds = tl.load(sums + size + cell, mask=is_one, other=_LOWEST)
        totals = tl.load(sums + 2 * size + cell, mask=is_one, other=0.0)
        moments = tl.load(sums + 3 * size + cell, mask=is_one, other=0.0)
        held_logit += tl.sum(tl.load(sums + 4 * size + cell, mask=is_one, other=0.0), 1)
        some_top, place = tl.max(tops, 1, return_indices=True)
        is_top = tl.arange(0, SHARES)[None, :] == place[:, None]
        some_id = tl.sum(tl.where(is_top, tl.load(ids + cell, mask=is_one, other=0), 0), 1)
        some_second = tl.max(tl.where(is_top, seconds, tops), 1)
        top_id = tl.where(some_top > top, some_id, top_id)
        top, second, total, moment = _fold_measures(
            top, second, total, moment, some_top, some_second, tops, totals, moments
        )
    # The top itself counts 1; only rows that are not there have less.
    total = tl.maximum(total, 1.0)
    log_total = tl.log(total)
    margin = tl.exp(-log_total) - tl.exp(second - top - log_total)
    entropy = tl.maximum(log_total - moment / total, 0.0)
    tl.store(statistics + row, -log_total, mask=row < num_rows)
    tl.store(statistics + num_rows + row, margin, mask=row < num_rows)
    tl.store(statistics + 2 * num_rows + row, entropy, mask=row < num_rows)
    tl.store(statistics + 3 * num_rows + row, held_logit - top - log_total, mask=row < num_rows)
    # A row of nan has no top; what it is told must be an id all the same.
    tl.store(top_ids + row, tl.minimum(top_id, VOCABULARY - 1).to(tl.int64), mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def draw_shares(
    hidden,  # (R, H)
    weight,  # (V, H)
    bias,  # (V,) or None
    banned,  # (V,) uint8
    may_delete,  # (R,) uint8 or None
    keys,  # (R,) int64
    temperatures,  # (R,) float32
    sums,  # (4, S, R) float32, written: best noised logit, its logit, top, total
    ids,  # (S, R) int32, written: the token with the best noised logit
    num_rows,
    num_tiles,  # of a share
    VOCABULARY: tl.constexpr,
    HIDDEN: tl.constexpr,
    DELETE_ID: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """What `join_draws` draws a row's token from, of one share."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    key = tl.load(keys + row, mask=row < num_rows, other=0)
    temperature = tl.load(temperatures + row, mask=row < num_rows, other=0.0)
    best = tl.full((ROWS,), _LOWEST, tl.float32)
    best_logit = tl.zeros((ROWS,), tl.float32)
    best_id = tl.zeros((ROWS,), tl.int32)
    top = tl.full((ROWS,), _LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for tile in range(num_tiles):
        start = (tl.program_id(1) * num_tiles + tile) * COLUMNS
        column = start + tl.arange(0, COLUMNS)
        z = _logits(hidden, weight, bias, row, column, num_rows, VOCABULARY, HIDDEN, INNER)
        z = _without_banned(z, banned, may_delete, row, column, num_rows, VOCABULARY, DELETE_ID)
        noisy = z + temperature[:, None] * _gumbel(key, column)
        tile_best, place = tl.max(noisy, 1, return_indices=True)
        is_best = tl.arange(0, COLUMNS)[None, :] == place[:, None]
        tile_logit = tl.sum(tl.where(is_best, z, 0.0), 1)
        best, best_logit, best_id = _better_of(
            best, best_logit, best_id, tile_best, tile_logit, start + place
        )
        top, total = _fold_total(top, total, z, 1.0)
    size = tl.num_programs(1) * num_rows
    cell = tl.program_id(1) * num_rows + row
    tl.store(sums + cell, best, mask=row < num_rows)
    tl.store(sums + size + cell, best_logit, mask=row < num_rows)
    tl.store(sums + 2 * size + cell, top, mask=row < num_rows)
    tl.store(sums + 3 * size + cell, total, mask=row < num_rows)
    tl.store(ids + cell, best_id, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_shares"])
def join_draws(
    sums,  # (4, S, R) float32
    ids,  # (S, R) int32
    token_ids,  # (R,) int64, written
    log_probs,  # (R,) float32, written
    num_rows,
    num_shares,
    VOCABULARY: tl.constexpr,
    ROWS: tl.constexpr,
    SHARES: tl.constexpr,
):
    """A row's token and its log-probability at temperature 1, of all its shares."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    size = num_shares * num_rows
    best = tl.full((ROWS,), _LOWEST, tl.float32)
    best_logit = tl.zeros((ROWS,), tl.float32)
    best_id = tl.zeros((ROWS,), tl.int32)
    top = tl.full((ROWS,), _LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, num_shares, SHARES):
        share = start + tl.arange(0, SHARES)
        cell = share[None, :] * num_rows + row[:, None]
        is_one = (share < num_shares)[None, :] & (row < num_rows)[:, None]
        bests = tl.load(sums + cell, mask=is_one, other=_LOWEST)
        logits = tl.load(sums + size + cell, mask=is_one, other=0.0)
        tops = tl.load(sums + 2 * size + cell, mask=is_one, other=_LOWEST)
        totals = tl.load(sums + 3 * size + cell, mask=is_one, other=0.0)
        some_best, place = tl.max(bests, 1, return_indices=True)
        is_best = tl.arange(0, SHARES)[None, :] == place[:, None]
        some_id = tl.sum(tl.where(is_best, tl.load(ids + cell, mask=is_one, other=0), 0), 1)
        some_logit = tl.sum(tl.where(is_best, logits, 0.0), 1)
        best, best_logit, best_id = _better_of(
            best, best_logit, best_id, some_best, some_logit, some_id
        )
        top, total = _fold_total(top, total, tops, totals)
    tl.store(token_ids + row, tl.minimum(best_id, VOCABULARY - 1).to(tl.int64), mask=row < num_rows)
    tl.store(
        log_probs + row, best_logit - top - tl.log(tl.maximum(total, 1.0)), mask=row < num_rows
    )


@triton.jit
def _logits(
    hidden,
    weight,
    bias,
    row,
    column,
    num_rows,
    VOCABULARY: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
):
    """Logits of one tile, float32, summed in float32 and rounded once to the weights' type: those
    of the product that PyTorch would run, ties included."""
    total = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    in_weight = weight + column[None, :].to(tl.int64) * HIDDEN
    for start in range(0, HIDDEN, INNER):
        inner = start + tl.arange(0, INNER)
        some_hidden = tl.load(
            hidden + row[:, None] * HIDDEN + inner[None, :],
            mask=(row < num_rows)[:, None] & (inner < HIDDEN)[None, :],
            other=0.0,
        )
        some_weight = tl.load(
            in_weight + inner[:, None],
            mask=(column < VOCABULARY)[None, :] & (inner < HIDDEN)[:, None],
            other=0.0,
        )
        # Otherwise products of float32 would be those of TF32, which PyTorch's are not.
        total = tl.dot(some_hidden, some_weight, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + column, mask=column < VOCABULARY, other=0.0).to(tl.float32)[None, :]
    return total.to(weight.dtype.element_ty).to(tl.float32)


@triton.jit
def _without_banned(
    z,
    banned,
    may_delete,
    row,
    column,
    num_rows,
    VOCABULARY: tl.constexpr,
    DELETE_ID: tl.constexpr,
):
    """The logits with those lowered that are never emitted, and what lies beyond the vocabulary;
    the deletion stays in rows that an edit may delete."""
    is_banned = (tl.load(banned + column, mask=column < VOCABULARY, other=1) != 0)[None, :]
    if may_delete is not None:
        deletes = tl.load(may_delete + row, mask=row < num_rows, other=0) != 0
        is_banned = is_banned & ~(deletes[:, None] & (column == DELETE_ID)[None, :])
    return tl.where(is_banned, _BANNED, z)


@triton.jit
def _fold_measures(top, second, total, moment, some_top, some_second, tops, totals, moments):
    """What is kept of rows (R,) with more columns (R, N) folded in, the tokens of a tile or shares:
    `some_top` and `some_second` are the two largest logits of all of them; `totals` and `moments`
    are each column's own, relative to its own top."""
    second = tl.maximum(tl.minimum(top, some_top), tl.maximum(second, some_second))
    largest = tl.maximum(top, some_top)
    total, moment = _relative_to(largest, top, total, moment)
    totals, moments = _relative_to(largest[:, None], tops, totals, moments)
    return largest, second, total + tl.sum(totals, 1), moment + tl.sum(moments, 1)


@triton.jit
def _fold_total(top, total, tops, totals):
    """Top and total of rows (R,) with more columns (R, N) folded in, as in `_fold_measures`."""
    largest = tl.maximum(top, tl.max(tops, 1))
    more = tl.sum(totals * tl.exp(tops - largest[:, None]), 1)
    return largest, total * tl.exp(top - largest) + more


@triton.jit
def _better_of(best, best_logit, best_id, some_best, some_logit, some_id):
    """The better one of two noised logits, with its logit and its token; the first one of two
    equal ones."""
    is_better = some_best > best
    best_logit = tl.where(is_better, some_logit, best_logit)
    best_id = tl.where(is_better, some_id, best_id)
    return tl.maximum(best, some_best), best_logit, best_id


@triton.jit
def _relative_to(largest, top, total, moment):
    """sum exp(z - top) and sum (z - top) exp(z - top), made relative to a larger number."""
    away = top - largest
    return total * tl.exp(away), (moment + away * total) * tl.exp(away)


@triton.jit
def _gumbel(key, column):
    """`randomness.gumbel` of keys (ROWS,) for the lanes `column`, the same but for rounding."""
    lane = column.to(tl.uint32) * _LANE_STEP
    low = key.to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    bits = _mix32(_mix32(lane[None, :] + low[:, None]) + high[:, None])
    u = tl.minimum((bits.to(tl.float32) + 0.5) * _UNIT, _ALMOST_ONE)
    return -tl.log(_minus_log1p(u))


@triton.jit
def _minus_log1p(u):
    """-log(1 - u) for u in (0, 1) with float32's relative precision also where u is small, which
    the Gumbel noise that decides a maximum comes from.

    There it is 2 artanh(r) with r = u / (2 - u), whose series is cut at r^9 / 9: for u below 1/4 at
    less than 2e-8 of the value.
    """
    r = u / (2.0 - u)
    r2 = r * r
    series = 2.0 * r * (1.0 + r2 * (1.0 / 3.0 + r2 * (1.0 / 5.0 + r2 * (1.0 / 7.0))))
    return tl.where(u < 0.25, series, -tl.log(1.0 - u))


@triton.jit
def _mix32(x):
    x = (x ^ (x >> 16)) * _LANE_A
    x = (x ^ (x >> 15)) * _LANE_B
    return x ^ (x >> 16)
