"""What an engine says of its model: defaults checked, limits applied."""

from __future__ import annotations

from diffusiongpt.engine.config import EngineConfig
from diffusiongpt.engine.errors import InvalidRequest, LoadError
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.model import LoadedModel
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS


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
