"""Requests made ready: every default filled in, or refused in a sentence before anything starts."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from diffusiongpt.engine.blocks import BlockPlan, plan_blocks
from diffusiongpt.engine.canvas import Canvas
from diffusiongpt.engine.checks import (
    check_bias,
    check_cache,
    check_constraint,
    check_draft,
    check_gap,
    check_hole,
    check_max_per_step,
    check_max_tokens,
    check_prompt,
    check_room,
    check_steps,
)
from diffusiongpt.engine.draft import DraftPlan, plan_draft
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.languages import Language
from diffusiongpt.engine.params import MAX_STEPS, GenerationParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.resolve import POLICY_PARAMETERS, resolve_policy


def prepare_request(
    request_id: str,
    prompt: Sequence[int],
    params: GenerationParams,
    info: ModelInfo,
    draft_ids: Sequence[int] = (),
    language: Language | None = None,
) -> Request:
    """Fill in the model's defaults and refuse what cannot be honoured.

    Args:
        draft_ids: the token ids of `params.draft`.

    Raises:
        InvalidRequest: with the offending value and what would be accepted.
    """
    check_max_tokens(params, info)
    if params.constraint is not None and params.ignore_eos:
        raise InvalidRequest(
            "ignore_eos must be false, because a text of the constraint ends where it is whole, "
            "got true",
            "ignore_eos",
        )
    draft = None
    if params.draft is not None:
        limits = {"max_tokens": params.max_tokens, "vocab_size": info.vocab_size}
        draft = plan_draft(params.draft, tuple(draft_ids), **limits)
    canvas = Canvas.of_completion(prompt, params.max_tokens)
    return _prepare(request_id, canvas, params, info, draft, (language,))


def prepare_infill(
    request_id: str,
    canvas: Canvas,
    params: GenerationParams,
    info: ModelInfo,
    languages: Sequence[Language | None] = (),
) -> Request:
    """A request that fills the holes of a canvas; `max_tokens` follows from it.

    An end of text within a hole leaves the rest of the hole to the model and has no text; a stop
    string ends the text of its hole, and no other's.

    Args:
        languages: of every hole of the canvas what it must be a text of, or None.

    Raises:
        InvalidRequest: with the offending value and what would be accepted.
    """
    if info.attention == "block_causal" and canvas.is_infill:
        params = _see_the_whole_canvas(params, info)
    most = _most_steps(canvas, params, info)
    if params.steps is not None and params.steps > most:
        raise InvalidRequest(
            f"steps must be in 1..{most}, one for each masked position, got {params.steps}",
            "steps",
        )
    languages = tuple(languages) or (None,) * len(canvas.holes)
    for hole, language in zip(canvas.holes, languages, strict=True):
        if language is not None:
            check_hole(hole, language, len(languages))
    params = params.replace(max_tokens=len(canvas.region), ignore_eos=True)
    request = _prepare(request_id, canvas, params, info, languages=languages)
    return replace(request, has_holes=True)


def prepare_scaffold(
    request_id: str,
    canvas: Canvas,
    languages: Sequence[Language],
    params: GenerationParams,
    info: ModelInfo,
) -> Request:
    """A request that fills the values of a schema; what is given between them is the answer's.

    A block-causal model writes it block by block: it sees the keys before a value, not those after.

    Raises:
        InvalidRequest: with the offending value and what would be accepted.
    """
    length = len(canvas.region)
    if length > params.max_tokens:
        raise InvalidRequest(
            f"max_tokens must be at least {length}, what the keys and the room of the values take "
            f"with scaffold={params.scaffold}, got {params.max_tokens}",
            "max_tokens",
        )
    steps = params.steps and min(params.steps, _most_steps(canvas, params, info))
    params = params.replace(max_tokens=length, steps=steps, ignore_eos=True)
    request = _prepare(request_id, canvas, params, info, languages=tuple(languages))
    return replace(request, has_holes=True, is_scaffold=True)


def _see_the_whole_canvas(params: GenerationParams, info: ModelInfo) -> GenerationParams:
    """What an infill asks of a model that serves blocks: the whole canvas as one of them."""
    if 0 not in info.block_lengths:
        raise InvalidRequest(
            f"{info.name} is block-causal and sees nothing after its block; "
            "infilling needs a bidirectional model",
            "prompt",
        )
    if params.block_length:
        raise InvalidRequest(
            f"block_length must be 0 or absent for an infill, because blocks of a block-causal "
            f"model see nothing after them, got {params.block_length}",
            "block_length",
        )
    return params.replace(block_length=0)


def _most_steps(canvas: Canvas, params: GenerationParams, info: ModelInfo) -> int:
    """One for each mask; policies that mask again may take more."""
    tosses = PRESETS[params.policy or info.defaults.policy or "entropy_bound"].tosses
    return MAX_STEPS if tosses else canvas.num_masked


def _prepare(
    request_id: str,
    canvas: Canvas,
    params: GenerationParams,
    info: ModelInfo,
    draft: DraftPlan | None = None,
    languages: tuple[Language | None, ...] = (),
) -> Request:
    check_prompt(canvas.known, info)
    check_bias(params, info)
    language = next((each for each in languages if each is not None), None)
    constraint = params.constraint if language is None else language.constraint
    is_constrained = constraint is not None
    in_order = next((each for each in languages if each is not None and each.is_in_order), None)
    params = fill_defaults(
        params, info, is_constrained=is_constrained, in_any_order=in_order is None
    )
    policy = resolve_policy(params, info)
    if constraint is not None:
        check_constraint(params, policy, constraint.kind, in_order)
    if language is not None:
        check_room(language, params)
    check_gap(params)
    blocks = plan_blocks(canvas, params, info)
    check_cache(params, policy, blocks, info)
    if draft is not None:
        check_draft(draft, params, policy, blocks, is_constrained=is_constrained)
    masks = _masks_of_blocks(canvas, blocks)
    num_masked = _num_masked(canvas, draft, is_constrained=is_constrained)
    steps = num_masked if params.steps is None else params.steps
    # Where the masks of a draft will be is not known yet; they may be in as many blocks as there
    # are.
    check_steps(steps, min(sum(each > 0 for each in masks), num_masked), blocks)
    if draft is None:
        check_max_per_step(params, masks)
    return Request(
        request_id=request_id,
        canvas=canvas,
        params=params,
        policy=policy,
        blocks=blocks,
        steps=steps,
        draft=draft,
        languages=languages,
    )


def _masks_of_blocks(canvas: Canvas, blocks: BlockPlan) -> list[int]:
    """How many masks each block has, if none of it is a draft's."""
    origin = blocks.prompt_length
    return [
        canvas.region[start - origin : end - origin].count(None)
        for start, end in blocks.spans_from(origin)
    ]


def _num_masked(canvas: Canvas, draft: DraftPlan | None, *, is_constrained: bool) -> int:
    """How many positions are to be filled."""
    if draft is None:
        return canvas.num_masked
    num_masked = canvas.num_masked - draft.num_kept
    # What cannot stand in the language is masked as well, which shows in its slot.
    return max(num_masked, 1) if is_constrained else num_masked


def fill_defaults(
    params: GenerationParams,
    info: ModelInfo,
    *,
    is_constrained: bool,
    in_any_order: bool,
) -> GenerationParams:
    """Replace what the request leaves open by the model's defaults, and draw a seed."""
    defaults = info.defaults
    if is_constrained and params.gap is None:
        # Commits of a step may be neighbours.
        params = params.replace(gap=1)
    if not in_any_order and params.edits is None:
        # What is committed stays, unless a policy is named that changes it, which is refused.
        asks_for_edits = params.policy is not None and PRESETS[params.policy].revises
        params = params if asks_for_edits else params.replace(edits=False)
    filled: dict[str, object] = {
        name: getattr(defaults, name)
        for name in ("policy", "temperature", "top_p", "top_k", "gap", "edits")
        if getattr(params, name) is None
    }
    if params.policy in (None, defaults.policy):
        # A gate of the model's default policy means nothing to another policy.
        for name in POLICY_PARAMETERS:
            if getattr(params, name) is None:
                filled[name] = getattr(defaults, name)
    if params.block_length is None:
        filled["block_length"] = defaults.block_length
    if params.cache is None:
        filled["cache"] = "off"
    if params.seed is None:
        filled["seed"] = secrets.randbits(63)
    return params.replace(**filled)
