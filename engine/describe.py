"""What an engine says of its model: defaults checked, limits applied."""

from __future__ import annotations

import warnings

from diffusiongpt.engine.captured import LARGEST_BUCKET
from diffusiongpt.engine.config import PREFIX_CACHE_BYTES, EngineConfig
from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.sampling import Head


def describe_model(model: LoadedModel, config: EngineConfig) -> ModelInfo:
    """What clients may know of a model; raises LoadError when its sampler defaults are bad."""
    sampler = dict(model.sampler)
    policy = sampler.setdefault("policy", "entropy_bound")
    if policy not in PRESETS:
        raise LoadError(
            f"the model's default policy must be one of {', '.join(PRESETS)}, got {policy!r}"
        )
    filled = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "gap": 1, **sampler}
    filled["max_tokens"] = min(int(filled.get("max_tokens", 256)), config.max_tokens)
    try:
        defaults = GenerationParams(**filled)
    except (TypeError, InvalidRequest) as error:
        raise LoadError(f"the model's sampler defaults cannot be used: {error}") from error
    if PRESETS[policy].needs_edit_training and not model.can_edit:
        raise LoadError(
            f"the model's default policy {policy} revises filled positions, "
            "which the model was not trained to predict"
        )
    return ModelInfo(
        name=config.name or model.name,
        family=model.family.name,
        attention=model.attention,
        context_length=model.context_length,
        block_length=model.block_length,
        vocab_size=model.vocab_size,
        num_parameters=model.num_parameters,
        max_tokens=config.max_tokens,
        defaults=defaults,
        can_edit=model.can_edit,
        logit_shift=model.logit_shift,
        block_lengths=model.block_lengths,
    )


def token_budget_of(config: EngineConfig, info: ModelInfo) -> int:
    """Tokens that one packed forward may have: what was asked for, or one that suits the model."""
    if config.token_budget is not None:
        return config.token_budget
    return 4 * info.context_length if config.deterministic else max(8192, info.context_length)


def cache_budget_of(config: EngineConfig, info: ModelInfo) -> int:
    """Positions whose keys and values may be kept: what was asked for, or four token budgets."""
    return config.cache_budget or 4 * token_budget_of(config, info)


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


def capture_model(model: LoadedModel, config: EngineConfig) -> None:
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
        warnings.warn(f"every forward runs eagerly: {error}", RuntimeWarning, stacklevel=3)


def fuses_head(model: LoadedModel, config: EngineConfig) -> bool:
    """Whether the head is one kernel: what was asked for, or where there is one."""
    if config.fused_head is not None:
        return config.fused_head
    return model.device.type == "cuda" and not config.deterministic


def fuse_head(head: Head, model: LoadedModel, config: EngineConfig) -> None:
    """Fuse the model's head; where nobody asked for that, one that cannot be runs in chunks, and
    is said to."""
    try:
        head.fuse(model.before_head, model.head_product)
    except LoadError as error:
        if config.fused_head:
            raise LoadError(f"fused_head is on, but {error}") from error
        warnings.warn(f"the head runs in chunks: {error}", RuntimeWarning, stacklevel=3)


def prefix_cache_bytes_of(config: EngineConfig) -> int:
    """Memory for settled blocks that outlive their request: what was asked for, or the default."""
    if config.prefix_cache_bytes is not None:
        return config.prefix_cache_bytes
    return 0 if config.deterministic else PREFIX_CACHE_BYTES
