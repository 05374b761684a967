"""Puts an engine together: its model as the settings want it, the head, the buffers, the scheduler.

What the settings leave open is decided here: whether forwards are recorded, whether the head is
fused, whether settled blocks are kept, and how much of them.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from diffusiongpt.engine.captured import LARGEST_BUCKET
from diffusiongpt.engine.config import PREFIX_CACHE_BYTES, EngineConfig
from diffusiongpt.engine.describe import cache_budget_of, describe_model, token_budget_of
from diffusiongpt.engine.errors import LoadError
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.loader import LoadedModel, load_model
from diffusiongpt.engine.pages import PageStore
from diffusiongpt.engine.sampling import Head
from diffusiongpt.engine.scheduler import Scheduler
from diffusiongpt.engine.slots import SlotTable
from diffusiongpt.engine.tokenizer import Tokenizer
from diffusiongpt.engine.tokenizer_files import load_tokenizer


def load_parts(model: str | Path, config: EngineConfig) -> tuple[LoadedModel, Tokenizer | None]:
    """A model as the settings want it, and the tokenizer in its folder; raises LoadError."""
    loaded = load_model(
        model, family=config.family, dtype=config.dtype, device=config.device, name=config.name
    )
    if config.quantize is not None:
        loaded.quantize(config.quantize)
    if config.compile:
        loaded.compile()
    if captures_forwards(loaded, config):
        _capture(loaded, config)
    tokenizer = load_tokenizer(
        loaded.folder,
        vocab_size=loaded.vocab_size,
        mask_token_id=loaded.mask_token_id,
        stop_token_ids=loaded.stop_token_ids,
        chat_template=loaded.chat_template,
    )
    return loaded, tokenizer


def new_head(model: LoadedModel, config: EngineConfig) -> Head:
    """The model's output head, compiled and fused as the settings want it; raises LoadError."""
    head = Head(
        model.head,
        torch.tensor(sorted(model.never_emit_token_ids), device=config.device),
        chunk=config.head_chunk,
        pad=config.deterministic,
        delete_token_id=model.delete_token_id,
    )
    if config.compile:
        head.compile(model.vocab_size)
    if fuses_head(model, config):
        _fuse(head, model, config)
    return head


def new_scheduler(model: LoadedModel, info: ModelInfo, config: EngineConfig) -> Scheduler:
    """The scheduler with its budgets, and the slots whose longest canvas and block fit."""
    longest_block = max(info.block_length or 0, *info.block_lengths, 0)
    token_budget = token_budget_of(config, info)
    table = SlotTable(
        config.num_slots,
        info.context_length + config.max_tokens + longest_block,
        mask_token_id=model.mask_token_id,
        device=config.device,
    )
    return Scheduler(
        table=table,
        token_budget=token_budget,
        cache_budget=cache_budget_of(config, info),
        row_budget=config.row_budget or token_budget,
        max_waiting=config.max_waiting,
        uses_cache=caches_blocks(model, config),
        pages=_new_pages(model, info, config),
        pool=model.pool,
        logit_shift=model.logit_shift,
    )


def _new_pages(model: LoadedModel, info: ModelInfo, config: EngineConfig) -> PageStore | None:
    num_bytes = _prefix_cache_bytes_of(config)
    if not num_bytes or not caches_blocks(model, config):
        return None
    return PageStore(info.block_length or 0, num_bytes)


def caches_blocks(model: LoadedModel, config: EngineConfig) -> bool:
    """Whether the keys and values of settled blocks are kept."""
    # A shifted model's first logit of a block comes from the last position before it.
    return model.attention == "block_causal" and config.cache_blocks and not model.logit_shift


def captures_forwards(model: LoadedModel, config: EngineConfig) -> bool:
    """Whether forwards are recorded and replayed: what was asked for, or where it helps."""
    if config.capture is not None:
        return config.capture
    fits = not (model.family.is_mixture or config.deterministic)
    return model.device.type == "cuda" and fits


def _capture(model: LoadedModel, config: EngineConfig) -> None:
    """Record the model's forwards; where nobody asked for that, one that cannot be is served
    eagerly, and said to be."""
    kept = cache_budget_of(config, describe_model(model, config))
    try:
        model.capture(
            largest=config.token_budget or LARGEST_BUCKET,
            max_canvases=config.num_slots,
            num_kept=kept if caches_blocks(model, config) else 0,
        )
    except LoadError as error:
        if config.capture:
            raise
        warnings.warn(f"every forward runs eagerly: {error}", RuntimeWarning, stacklevel=4)


def fuses_head(model: LoadedModel, config: EngineConfig) -> bool:
    """Whether the head is one kernel: what was asked for, or where there is one."""
    if config.fused_head is not None:
        return config.fused_head
    return model.device.type == "cuda" and not config.deterministic


def _fuse(head: Head, model: LoadedModel, config: EngineConfig) -> None:
    """Fuse the model's head; where nobody asked for that, one that cannot be runs in chunks, and
    is said to."""
    try:
        head.fuse(model.before_head, model.head_product)
    except LoadError as error:
        if config.fused_head:
            raise LoadError(f"fused_head is on, but {error}") from error
        warnings.warn(f"the head runs in chunks: {error}", RuntimeWarning, stacklevel=3)


def _prefix_cache_bytes_of(config: EngineConfig) -> int:
    """Memory for settled blocks that outlive their request: what was asked for, or the default."""
    if config.prefix_cache_bytes is not None:
        return config.prefix_cache_bytes
    return 0 if config.deterministic else PREFIX_CACHE_BYTES
