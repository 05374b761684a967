"""What in a request contradicts the model or the rest of it, refused in a sentence.

Each check says what must hold, and raises InvalidRequest with the offending value and what would be
accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffusiongpt.engine.blocks import BlockPlan
from diffusiongpt.engine.constraint import ConstraintKind
from diffusiongpt.engine.draft import DraftPlan
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.languages import Language
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import Policy

MAX_GAP = 64


def check_max_tokens(params: GenerationParams, info: ModelInfo) -> None:
    """The completion is no longer than the engine takes."""
    if params.max_tokens > info.max_tokens:
        raise InvalidRequest(
            f"max_tokens must be in 1..{info.max_tokens}, got {params.max_tokens}", "max_tokens"
        )


def check_prompt(prompt: tuple[int, ...], info: ModelInfo) -> None:
    """What is given are ids of the vocabulary, and leave room for a block; or
    ContextLengthExceeded."""
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


def check_bias(params: GenerationParams, info: ModelInfo) -> None:
    """Biases are for ids of the vocabulary."""
    for token_id, _ in params.logit_bias:
        if token_id >= info.vocab_size:
            raise InvalidRequest(
                f"logit_bias token ids must be in 0..{info.vocab_size - 1}, got {token_id}",
                "logit_bias",
            )


def check_gap(params: GenerationParams) -> None:
    """Commits of a step are not too far apart."""
    if params.gap is not None and params.gap > MAX_GAP:
        raise InvalidRequest(f"gap must be in 1..{MAX_GAP}, got {params.gap}", "gap")


def check_steps(steps: int, num_blocks: int, blocks: BlockPlan) -> None:
    """Each block that has masks gets a step."""
    if steps < num_blocks:
        raise InvalidRequest(
            f"steps must be at least {num_blocks}, one for each block of "
            f"{blocks.block_length} in {blocks.length} tokens, got {steps}",
            "steps",
        )


def check_max_per_step(params: GenerationParams, masks: Sequence[int]) -> None:
    """Within the budget of steps blocks of so many masks can be filled."""
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


def check_cache(
    params: GenerationParams, policy: Policy, blocks: BlockPlan, info: ModelInfo
) -> None:
    """An approximate cache is asked for where there can be one."""
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


def check_draft(
    draft: DraftPlan,
    params: GenerationParams,
    policy: Policy,
    blocks: BlockPlan,
    *,
    is_constrained: bool,
) -> None:
    """The policy and the model can refine a draft."""
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


def check_constraint(
    params: GenerationParams, policy: Policy, kind: ConstraintKind, in_order: Language | None
) -> None:
    """Policy, draft and stop strings leave the text of a constraint whole.

    Args:
        in_order: the language that is written from left to right, if there is one.
    """
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


def check_room(language: Language, params: GenerationParams) -> None:
    """A completion has room for some text of its language."""
    if len(language.shortest) > params.max_tokens:
        raise InvalidRequest(
            f"max_tokens must be {_room_for(language)}, got {params.max_tokens}", "max_tokens"
        )


def check_hole(hole: tuple[int, int], language: Language, num_holes: int) -> None:
    """A hole (start, end) has room for some text of its language."""
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
