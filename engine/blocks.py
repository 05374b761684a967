"""The blocks that a canvas is denoised in, and what the model sees meanwhile. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from diffusiongpt.engine.canvas import Canvas
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.params import GenerationParams


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """How a canvas is cut into blocks, and what the model sees while it fills one.

    Attributes:
        prompt_length: positions before the completion. length: positions of the completion.
        suffix_length: positions after it.
        block_length: positions of a block; the whole completion when it is the canvas.
        aligned: blocks start at multiples of `block_length` of the canvas (block-causal
            models, whose attention is cut there) and not at the completion's start.
        lookahead: masks kept in view after the block when the canvas exceeds the context.
        context_length: tokens the model sees at once.
    """

    prompt_length: int
    length: int
    block_length: int
    aligned: bool
    lookahead: int
    context_length: int
    suffix_length: int = 0

    @property
    def causal_block(self) -> int | None:
        """The block length of the attention; None where all of the window sees all of it."""
        return self.block_length if self.aligned else None

    @property
    def end(self) -> int:
        """The canvas position after the completion."""
        return self.prompt_length + self.length

    def spans_from(self, start: int) -> Iterator[tuple[int, int]]:
        """The blocks from canvas position `start` on, as (start, end)."""
        while start < self.end:
            end = self.block_end(start)
            yield start, end
            start = end

    @property
    def fits_context(self) -> bool:
        """Whether the model sees the whole canvas at once, so that no window ever moves."""
        return self.window(self.end)[0] == 0

    def block_end(self, start: int) -> int:
        """Where the block that holds canvas position `start` ends, cut at the completion."""
        origin = 0 if self.aligned else self.prompt_length
        index = (start - origin) // self.block_length
        return min(origin + (index + 1) * self.block_length, self.end)

    def window(self, block_end: int) -> tuple[int, int]:
        """The canvas positions start..stop that the model sees while it fills a block.

        A block-causal model sees its whole last block and nothing after it; a bidirectional
        one the whole canvas, or as much of it as fits, the lookahead included.
        """
        if self.aligned:
            stop = math.ceil(block_end / self.block_length) * self.block_length
            over = max(stop - self.context_length, 0)
            return math.ceil(over / self.block_length) * self.block_length, stop
        if self.end + self.suffix_length <= self.context_length:
            return 0, self.end + self.suffix_length
        stop = min(block_end + self.lookahead, self.end)
        return max(stop - self.context_length, 0), stop

    @property
    def max_window(self) -> int:
        """Tokens of the longest window."""
        if self.aligned:
            stop = math.ceil(self.end / self.block_length) * self.block_length
            return min(stop, self.context_length)
        return min(self.end + self.suffix_length, self.context_length)

    @property
    def max_cached_window(self) -> int:
        """Tokens of the longest window where settled blocks are kept: the prompt with the first
        block, or a block with the one before it, which is stored then."""
        first = self.window(self.block_end(self.prompt_length))[1]
        return min(max(first, 2 * self.block_length), self.max_window)

    @property
    def max_rows(self) -> int:
        """Most positions of a block: what may go through the output head in one step."""
        return min(self.block_length, self.length)


def plan_blocks(canvas: Canvas, params: GenerationParams, info: ModelInfo) -> BlockPlan:
    """Cut a request's canvas into blocks; raises InvalidRequest for what cannot be."""
    block_length = params.block_length
    if info.attention == "block_causal":
        block_length = _trained_block(params, info)
    aligned = info.attention == "block_causal" and block_length != 0
    full_canvas = not block_length
    block_length = block_length or params.max_tokens
    lookahead = block_length if params.lookahead is None else params.lookahead
    blocks = BlockPlan(
        prompt_length=len(canvas.prompt),
        length=params.max_tokens,
        suffix_length=len(canvas.suffix),
        block_length=block_length,
        aligned=aligned,
        lookahead=0 if full_canvas else lookahead,
        context_length=info.context_length,
    )
    if canvas.is_infill:
        _check_infill(blocks)
    _check_context(blocks, full_canvas=full_canvas)
    return blocks


def _trained_block(params: GenerationParams, info: ModelInfo) -> int:
    """The block length of a request to a block-causal model; 0 is the whole canvas."""
    own = info.block_length or 1
    trained = info.block_lengths or (own,)
    block_length = own if params.block_length is None else params.block_length
    if block_length not in trained:
        raise InvalidRequest(
            f"block_length must be {' or '.join(map(str, trained))}, as this block-causal model "
            f"was trained, got {block_length}",
            "block_length",
        )
    if params.lookahead:
        raise InvalidRequest(
            "lookahead must be 0 or absent, because a block-causal model sees nothing "
            f"after its block, got {params.lookahead}",
            "lookahead",
        )
    return block_length


def _check_infill(blocks: BlockPlan) -> None:
    total = blocks.end + blocks.suffix_length
    if total > blocks.context_length:
        raise ContextLengthExceeded(
            f"the texts and holes make {total} tokens, more than the model's context of "
            f"{blocks.context_length}",
            "prompt",
        )


def _check_context(blocks: BlockPlan, *, full_canvas: bool) -> None:
    if blocks.aligned or blocks.end <= blocks.context_length:
        return
    if full_canvas:
        raise ContextLengthExceeded(
            f"prompt and max_tokens make {blocks.end} tokens, more than the model's context of "
            f"{blocks.context_length}; ask for at most "
            f"{blocks.context_length - blocks.prompt_length} tokens, or set block_length to "
            "write a longer answer block by block",
            "max_tokens",
        )
    if blocks.block_length + blocks.lookahead >= blocks.context_length:
        raise InvalidRequest(
            f"block_length and lookahead must leave room for text in the context of "
            f"{blocks.context_length}, got {blocks.block_length} + {blocks.lookahead}",
            "block_length",
        )
