"""A preset with a request's own parameters in it, or a sentence on why not. Torch-free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.params import EditParams, GenerationParams
from diffusiongpt.engine.policies import PRESETS, Policy

# Fields of GenerationParams that replace a preset's, and which presets have a use for them.
_USES: Mapping[str, Callable[[Policy], bool]] = MappingProxyType(
    {
        "threshold": lambda preset: preset.adaptive,
        "factor": lambda preset: preset.adaptive,
        "entropy_bound": lambda preset: preset.adaptive,
        "max_per_step": lambda preset: preset.adaptive,
        "stable": lambda preset: preset.stable > 0,
        "credit": lambda preset: preset.credit > 0.0,
        "position_bias": lambda preset: not (preset.timed or preset.single),
        "remask": lambda preset: preset.tosses,
    }
)
POLICY_PARAMETERS = tuple(_USES)


def resolve_policy(params: GenerationParams, info: ModelInfo) -> Policy:
    """The preset that a request names, with its own gates, weights and edits.

    Raises:
        InvalidRequest: parameters that contradict the preset, the step budget or the model.
    """
    name = params.policy or info.defaults.policy or "entropy_bound"
    preset = PRESETS[name]
    _check_steps(name, preset, params.steps)
    if preset.timed and params.steps is None:
        # Without a budget time is continuous: no two positions are hit in the same step, and
        # the hitting times only order them (the first-hitting sampler, arXiv 2409.02908).
        preset = dataclasses.replace(preset, timed=False)
    policy = _with_edits(_with_parameters(name, preset, params), params.edits)
    if policy.casts_shadows and info.logit_shift:
        raise InvalidRequest(
            f"{name} needs a model whose logits are those of their own position, and "
            f"{info.name}'s are those of the next; verify takes a look at a full block instead",
            "policy",
        )
    if policy.needs_edit_training and not info.can_edit:
        raise InvalidRequest(
            f"{info.name} was not trained to predict filled positions, so they cannot be edited, "
            f"got policy={name!r} and edits={params.edits!r}",
            "policy" if params.edits is None else "edits",
        )
    return policy


def _check_steps(name: str, preset: Policy, steps: int | None) -> None:
    if preset.tosses and steps is None:
        raise InvalidRequest(
            f"steps must be given, because {name} masks again by a schedule over them, got None",
            "steps",
        )
    if preset.single and steps is not None:
        raise InvalidRequest(
            f"steps must be absent, because {name} commits one token a step; "
            f"random takes a budget, got {steps}",
            "steps",
        )


def _with_parameters(name: str, preset: Policy, params: GenerationParams) -> Policy:
    asked = {each: getattr(params, each) for each in _USES}
    asked = {each: value for each, value in asked.items() if value is not None}
    for each, value in asked.items():
        if not _USES[each](PRESETS[name]):
            users = ", ".join(other for other, policy in PRESETS.items() if _USES[each](policy))
            raise InvalidRequest(
                f"{each} belongs to the policies {users}; {name} has no use for it, "
                f"got {each}={value!r}",
                each,
            )
    return dataclasses.replace(preset, **asked)


def _with_edits(policy: Policy, edits: bool | EditParams | None) -> Policy:
    if edits is None or (edits is True and policy.max_rounds):
        return policy
    if edits is False:
        return dataclasses.replace(policy, edit_threshold=math.inf, doubt=0.0, max_rounds=0)
    wanted = EditParams() if edits is True else edits
    return dataclasses.replace(
        policy,
        edit_threshold=wanted.threshold,
        edit_margin=wanted.margin,
        doubt=wanted.doubt,
        max_rounds=wanted.max_rounds,
    )


ORIGINAL_EDITS = EditParams(threshold=0.9, margin=4.0, max_rounds=16)


def original_parameters(
    *, use_confidence: bool = False, allow_edits: bool | None = None, can_edit: bool
) -> dict[str, Any]:
    """Fields of GenerationParams for the choices of the original diffusionGPT's pipeline.

    Its ranking by the drawn token's probability becomes `confidence`, which ranks by the
    distribution and keeps a step's commits apart; its unmasking at random is `ancestral`; its
    resampling of visible tokens at random becomes edits where the model is sure.

    Args:
        allow_edits: None edits where the model `can_edit`; True asks for it in any case, and
            a model that cannot is refused by the engine.
    """
    edits = can_edit if allow_edits is None else allow_edits
    ranking: dict[str, Any] = {"policy": "ancestral"}
    if use_confidence:
        ranking = {"policy": "confidence", "gap": 4}
    return {**ranking, "edits": ORIGINAL_EDITS if edits else False}
