"""Requests made ready: every default filled in, or refused in a sentence before anything starts."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import replace

from diffusiongpt.engine.blocks import BlockPlan, plan_blocks
from diffusiongpt.engine.canvas import Canvas
from diffusiongpt.engine.constraint import ConstraintKind
from diffusiongpt.engine.draft import DraftPlan, plan_draft
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.languages import Language
from diffusiongpt.engine.params import MAX_STEPS, GenerationParams
from diffusiongpt.engine.policies import PRESETS, Policy
from diffusiongpt.engine.request import Request
from diffusiongpt.engine.resolve import POLICY_PARAMETERS, resolve_policy

MAX_GAP = 64


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
            _check_hole(hole, language, len(languages))
    params = params.replace(max_tokens=len(canvas.region), ignore_eos=True)
    request = _prepare(request_id, canvas, params, info, languages=languages)
    return replace(request, has_holes=True)


def _most_steps(canvas: Canvas, params: GenerationParams, info: ModelInfo) -> int:
    """One for each mask; policies that mask again may take more."""
    tosses = PRESETS[params.policy or info.defaults.policy or "entropy_bound"].tosses
    return MAX_STEPS if tosses else canvas.num_masked


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


def _check_hole(hole: tuple[int, int], language: Language, num_holes: int) -> None:
    length = hole[1] - hole[0]
    if language.is_in_order and num_holes > 1:
        raise InvalidRequest(
            f"this {language.constraint.kind} is written from left to right and takes one hole, "
            f"got {num_holes} of them{_why_in_order(language)}",
            "constraint",
        )
    if length < len(language.shortest):
        raise InvalidRequest(
            f"a hole's length must be {_room_for(language)}, got {length}", "prompt"
        )


def _why_in_order(language: Language) -> str:
    why = language.why_in_order
    return f"; it goes in no other order, because {why}" if why else ""


def _room_for(language: Language) -> str:
    """What a length must be; of some languages the shortest text is not known, but found."""
    found = "" if language.is_shortest_known else " that was found"
    return (
        f"at least {len(language.shortest)}, the length of the shortest text of this "
        f"{language.constraint.kind}{found}"
    )


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
    _check_max_tokens(params, info)
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


def _prepare(
    request_id: str,
    canvas: Canvas,
    params: GenerationParams,
    info: ModelInfo,
    draft: DraftPlan | None = None,
    languages: tuple[Language | None, ...] = (),
) -> Request:
    _check_prompt(canvas.known, info)
    _check_bias(params, info)
    language = next((each for each in languages if each is not None), None)
    constraint = params.constraint if language is None else language.constraint
    in_order = next((each for each in languages if each is not None and each.is_in_order), None)
    params = fill_defaults(
        params, info, is_constrained=constraint is not None, in_any_order=in_order is None
    )
    policy = resolve_policy(params, info)
    if constraint is not None:
        _check_constraint(params, policy, constraint.kind, in_order)
    if language is not None and len(language.shortest) > params.max_tokens:
        raise InvalidRequest(
            f"max_tokens must be {_room_for(language)}, got {params.max_tokens}", "max_tokens"
        )
    if params.gap is not None and params.gap > MAX_GAP:
        raise InvalidRequest(f"gap must be in 1..{MAX_GAP}, got {params.gap}", "gap")
    blocks = plan_blocks(canvas, params, info)
    _check_cache(params, policy, blocks, info)
    num_masked = canvas.num_masked
    origin = blocks.prompt_length
    masks = [
        canvas.region[start - origin : end - origin].count(None)
        for start, end in blocks.spans_from(origin)
    ]
    num_blocks = sum(each > 0 for each in masks)
    if draft is not None:
        _check_draft(draft, params, policy, blocks, is_constrained=constraint is not None)
        num_masked -= draft.num_kept
        if constraint is not None:
            # What cannot stand in the language is masked as well, which shows in its slot.
            num_masked = max(num_masked, 1)
        # Where its masks will be is not known yet; they may be in as many blocks as there are.
        num_blocks = min(num_blocks, num_masked)
    steps = num_masked if params.steps is None else params.steps
    if steps < num_blocks:
        raise InvalidRequest(
            f"steps must be at least {num_blocks}, one for each block of "
            f"{blocks.block_length} in {params.max_tokens} tokens, got {steps}",
            "steps",
        )
    if draft is None:
        _check_most(params, masks)
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


def _check_most(params: GenerationParams, masks: Sequence[int]) -> None:
    """Refuse a budget of steps in which blocks of so many masks cannot be filled."""
    most, steps = params.max_per_step, params.steps
    if most is None or steps is None:
        return
    needed = sum(math.ceil(each / most) for each in masks)
    if steps < needed:
        raise InvalidRequest(
            f"steps must be at least {needed}, because a step commits at most "
            f"max_per_step={most} of {sum(masks)} tokens, got {steps}",
            "steps",
        )


def _check_draft(
    draft: DraftPlan,
    params: GenerationParams,
    policy: Policy,
    blocks: BlockPlan,
    *,
    is_constrained: bool,
) -> None:
    if draft.num_kept and (policy.planned or policy.tosses):
        raise InvalidRequest(
            f"a draft cannot be refined by {params.policy}, whose schedule begins with nothing "
            "but masks; take another policy, or strength 1",
            "policy",
        )
    if draft.num_kept == params.max_tokens and not policy.revises and not is_constrained:
        raise InvalidRequest(
            f"the canvas is full already: the draft's {draft.num_kept} tokens are all of "
            f"max_tokens={params.max_tokens}, and nothing of it may change; raise strength or "
            "max_tokens, or edit where the model can",
            "strength",
        )
    if draft.needs_look and not blocks.fits_context:
        raise InvalidRequest(
            f"pick must be random where prompt and max_tokens make {blocks.end} tokens, more "
            f"than the model's context of {blocks.context_length}, got 'doubtful'",
            "pick",
        )


def fill_defaults(
    params: GenerationParams,
    info: ModelInfo,
    *,
    is_constrained: bool = False,
    in_any_order: bool = True,
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


def _check_prompt(prompt: tuple[int, ...], info: ModelInfo) -> None:
    for token_id in prompt:
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise InvalidRequest(f"prompt must hold token ids, got {token_id!r}", "prompt")
        if not 0 <= token_id < info.vocab_size:
            raise InvalidRequest(
                f"prompt token ids must be in 0..{info.vocab_size - 1}, got {token_id}", "prompt"
            )
    room = info.context_length - (info.block_length or 1)
    if len(prompt) > room:
        raise ContextLengthExceeded(
            f"the prompt has {len(prompt)} tokens, and the model's context of "
            f"{info.context_length} leaves room for {room}",
            "prompt",
        )


def _check_bias(params: GenerationParams, info: ModelInfo) -> None:
    for token_id, _ in params.logit_bias:
        if token_id >= info.vocab_size:
            raise InvalidRequest(
                f"logit_bias token ids must be in 0..{info.vocab_size - 1}, got {token_id}",
                "logit_bias",
            )


def _check_constraint(
    params: GenerationParams, policy: Policy, kind: ConstraintKind, in_order: Language | None
) -> None:
    if policy.revises and in_order is not None:
        raise InvalidRequest(
            f"this {kind} is written from left to right, where what is committed stays, and "
            f"policy={params.policy!r} with edits={params.edits!r} changes it; take a policy that "
            f"revises nothing{_why_in_order(in_order)}",
            "policy",
        )
    if params.draft is not None and in_order is not None:
        raise InvalidRequest(
            f"this {kind} is written from left to right, token by token, where nothing of a draft "
            "can stand ahead; take a regex, a choice or a schema that is filled in any order, got "
            f"a draft{_why_in_order(in_order)}",
            "draft",
        )
    if params.stop:
        raise InvalidRequest(
            f"stop must be absent, because a stop string would cut the text of the {kind} before "
            f"it is whole, got {len(params.stop)} of them",
            "stop",
        )


def _check_max_tokens(params: GenerationParams, info: ModelInfo) -> None:
    if params.max_tokens > info.max_tokens:
        raise InvalidRequest(
            f"max_tokens must be in 1..{info.max_tokens}, got {params.max_tokens}", "max_tokens"
        )


def _check_cache(
    params: GenerationParams, policy: Policy, blocks: BlockPlan, info: ModelInfo
) -> None:
    if params.cache in (None, "off"):
        return
    if policy.casts_shadows:
        raise InvalidRequest(
            f"cache must be off or absent with {params.policy}, which looks at all of the canvas "
            f"anew in every step, got {params.cache!r}",
            "cache",
        )
    if info.attention == "block_causal":
        raise InvalidRequest(
            f"cache must be off or absent, because {info.name} is block-causal and keeps its "
            f"settled blocks exactly, got {params.cache!r}",
            "cache",
        )
    if not blocks.fits_context:
        raise InvalidRequest(
            f"cache needs prompt and max_tokens within the context of {info.context_length}, "
            f"got {blocks.end} tokens with cache={params.cache!r}",
            "cache",
        )
