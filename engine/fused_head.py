"""The output head's last product, its statistics and its draws as one Triton kernel (CUDA).

The kernels (`head_kernels.py`) hold a tile of logits at a time, so no (rows, vocabulary) tensor
exists. Draws use the same counter-based noise as `sampling.draw_tokens`, token by token: a seed
gives the same tokens by either way, but for near ties that rounding decides.

Few rows alone would leave a device idle: so the vocabulary is cut into as many shares as keep it
busy, and a second kernel joins them (as in split-K and flash-decoding).

Legend: R rows, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.randomness import Purpose, counter_keys
from diffusiongpt.engine.rows import DrawParams, Draws, RowStatistics

if TYPE_CHECKING:
    from diffusiongpt.engine.sampling import Head

_COLUMNS = 128  # tokens of a tile
_INNER = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 32}  # of the hidden size at a time
_JOINED = {"ROWS": 8, "SHARES": 32}  # of a program that joins shares, at a time
_PROGRAMS_PER_PROCESSOR = 2  # of a CUDA device, to keep it busy
# How the kernel is tried at loading: numbers of rows, one for each shape of a program; how far
# apart log-probabilities may be; and the share of rows that may be farther apart, because two ways
# of summing round differently in 16 bits, and a near tie may fall the other way.
_TRIED = (1, 17, 48)
_TOLERANCE = 0.05
_MOST_APART = 0.2


class FusedHead:
    """Statistics and draws of hidden states (R, H), without logits.

    Args:
        before: hidden states (R, H) to what the last product takes, (R, H) again.
        product: the last product, whose weight is (V, H).
        banned: ids that are never emitted. delete_token_id: one of them that is an edit's to write.
        num_programs: programs that keep the device busy; None asks the device.

    Raises:
        LoadError: Triton is not installed or does not run on this device, or the last product is
            no plain linear layer in 16 or 32 bits.
    """

    def __init__(
        self,
        before: Callable[[Tensor], Tensor],
        product: nn.Module,
        banned: Tensor,
        *,
        delete_token_id: int | None = None,
        num_programs: int | None = None,
    ) -> None:
        self._kernels = _import_kernels(banned.device)
        if type(product) is not nn.Linear:
            raise LoadError(
                f"the fused head needs a plain linear layer, got a {type(product).__name__}"
            )
        if product.weight.dtype not in _INNER:
            raise LoadError(
                f"the fused head needs weights in 16 or 32 bits, got {product.weight.dtype}"
            )
        self._before = before
        self._product: nn.Linear = product
        self._delete = delete_token_id
        self._banned = torch.zeros(len(product.weight), dtype=torch.uint8, device=banned.device)
        self._banned[banned] = 1
        self._num_programs = num_programs or _num_programs(banned.device)

    def statistics(
        self, hidden: Tensor, held: Tensor, may_delete: Tensor | None = None
    ) -> RowStatistics:
        """As `Head.statistics`, of rows without a bias."""
        real = hidden.new_empty(4, len(hidden), dtype=torch.float32)
        top_id = held.new_empty(len(hidden))
        kernels = self._kernels.measure_shares, self._kernels.join_measures
        self._run(kernels, 5, hidden, may_delete, (held,), (real, top_id))
        log_top, margin, entropy, log_held = real
        return RowStatistics(log_top, margin, entropy, top_id, log_held)

    def draw(self, hidden: Tensor, params: DrawParams, may_delete: Tensor | None = None) -> Draws:
        """As `Head.draw`, of rows without a bias and with no token left out."""
        token_id = params.key.new_empty(len(hidden))
        log_prob = params.temperature.new_empty(len(hidden))
        kernels = self._kernels.draw_shares, self._kernels.join_draws
        given = params.key, params.temperature
        self._run(kernels, 4, hidden, may_delete, given, (token_id, log_prob))
        return Draws(token_id, log_prob)

    def log_prob(self, hidden: Tensor, token_id: Tensor) -> Tensor:
        """As `Head.log_prob`."""
        return self.statistics(hidden, token_id).log_held

    @torch.inference_mode()
    def check_against(self, head: Head) -> None:
        """Compile all kernels and try them on random rows, so that no request waits for that.

        Raises:
            LoadError: they do not run, or give other results than the head in chunks.
        """
        try:
            num_apart = sum(self._count_apart(head, num_rows) for num_rows in _TRIED)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise LoadError(
                f"the fused head does not run on this {self._banned.device.type}: "
                f"{type(error).__name__}: {reason}"
            ) from error
        if num_apart > _MOST_APART * sum(_TRIED):
            raise LoadError(
                f"the fused head differs from the head in chunks in {num_apart} of "
                f"{sum(_TRIED)} random rows"
            )

    def _count_apart(self, head: Head, num_rows: int) -> int:
        """How many of so many random rows have another draw, or log-probabilities far apart."""
        weight = self._product.weight
        vocab_size, hidden_size = weight.shape
        generator = torch.Generator().manual_seed(num_rows)
        hidden = torch.randn(num_rows, hidden_size, generator=generator)
        held = torch.randint(vocab_size, (num_rows,), generator=generator).to(weight.device)
        hidden, real = hidden.to(weight), torch.ones(num_rows, device=weight.device)
        key = counter_keys(held, Purpose.DRAW, torch.arange(num_rows, device=weight.device))
        params = DrawParams(key, real, real, held, real)
        is_near = torch.ones_like(held, dtype=torch.bool)
        drawn = [self.draw(hidden, params), head.draw(hidden, params, truncate=False)]
        seen = [each.statistics(hidden, held) for each in (self, head)]
        for one, other in (
            (drawn[0].log_prob, drawn[1].log_prob),
            (seen[0].log_top, seen[1].log_top),
            (seen[0].log_held, seen[1].log_held),
        ):
            is_near &= torch.isclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)
        return num_rows - int((is_near & (drawn[0].token_id == drawn[1].token_id)).sum())

    def _run(
        self,
        kernels: tuple[Any, Any],
        num_sums: int,
        hidden: Tensor,
        may_delete: Tensor | None,
        given: Sequence[Tensor],
        results: Sequence[Tensor],
    ) -> None:
        """Fill the results: a kernel over rows and shares of the vocabulary, which leaves so many
        sums and a token id of each, and one that joins the shares."""
        num_rows, weight = len(hidden), self._product.weight
        if not num_rows:
            return
        rows = rows_of_a_program(num_rows)
        num_row_blocks = -(-num_rows // rows)
        num_shares, num_tiles = cut_vocabulary(len(weight), num_row_blocks, self._num_programs)
        sums = weight.new_empty(num_sums, num_shares, num_rows, dtype=torch.float32)
        ids = weight.new_empty(num_shares, num_rows, dtype=torch.int32)
        shares_kernel, join_kernel = kernels
        with _current(weight.device):
            shares_kernel[num_row_blocks, num_shares](
                self._before(hidden).contiguous(),
                weight,
                self._product.bias,
                self._banned,
                self._deletions(may_delete, num_rows),
                *(each.contiguous() for each in given),
                sums,
                ids,
                num_rows,
                num_tiles,
                VOCABULARY=len(weight),
                HIDDEN=weight.shape[1],
                DELETE_ID=-1 if self._delete is None else self._delete,
                ROWS=rows,
                COLUMNS=_COLUMNS,
                INNER=_INNER[weight.dtype],
                **options_of(rows),
            )
            join_kernel[(-(-num_rows // _JOINED["ROWS"]),)](
                sums,
                ids,
                *results,
                num_rows,
                num_shares,
                VOCABULARY=len(weight),
                **_JOINED,
                **options_of(_JOINED["ROWS"]),
            )

    def _deletions(self, may_delete: Tensor | None, num_rows: int) -> Tensor | None:
        """Whether rows may be deleted, (R,) uint8; None where nothing can be, so that each model
        has one compiled kernel."""
        if self._delete is None:
            return None
        if may_delete is None:
            return self._banned.new_zeros(num_rows)
        return may_delete.contiguous().view(torch.uint8)


def rows_of_a_program(num_rows: int) -> int:
    """Rows of hidden states that a program has: a power of two that tensor cores take."""
    return 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64


def options_of(rows: int) -> dict[str, Any]:
    """How a kernel over so many rows at a time is compiled."""
    # The fusion of products and sums is today's default, and some day will not be.
    return {"num_warps": 4 if rows < 64 else 8, "num_stages": 3, "enable_fp_fusion": True}


def cut_vocabulary(vocab_size: int, num_row_blocks: int, num_programs: int) -> tuple[int, int]:
    """How many shares, each with at least one token, and tiles in each of them, so that row blocks
    times shares are about `num_programs`."""
    num_tiles = -(-vocab_size // _COLUMNS)
    tiles_of_a_share = -(-num_tiles // max(num_programs // num_row_blocks, 1))
    return -(-num_tiles // tiles_of_a_share), tiles_of_a_share


def _import_kernels(device: torch.device) -> Any:
    """The module of the kernels. Triton comes with PyTorch's CUDA builds, and nothing else needs
    it; on the CPU it can only interpret them, which is how they are tested."""
    try:
        from diffusiongpt.engine import head_kernels
    except ImportError as error:
        raise LoadError(
            f"the fused head needs Triton, which cannot be imported: {error}"
        ) from error
    if device.type != "cuda" and not head_kernels.IS_INTERPRETED:
        raise LoadError(f"the fused head needs a CUDA device, got {device.type}")
    return head_kernels


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _num_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    processors: int = torch.cuda.get_device_properties(device).multi_processor_count
    return _PROGRAMS_PER_PROCESSOR * processors
