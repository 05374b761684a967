"""A request that was checked, and what a slot holds of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusiongpt.engine.blocks import BlockPlan
from diffusiongpt.engine.canvas import Canvas
from diffusiongpt.engine.draft import DraftPlan
from diffusiongpt.engine.languages import Language
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import Policy
from diffusiongpt.engine.slot_rows import SlotIntegers, SlotReals


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked request.

    Attributes:
        request_id: the engine's name for it.
        canvas: what is given and what is masked.
        params: every field filled in but `lookahead` and `steps`.
        policy: the preset with the request's own gates. blocks: the canvas's plan.
        draft: what fills the first positions of the completion.
        steps: budget of denoising steps; a constraint may need more of them.
        has_holes: it was asked for as a text with holes, even if nothing comes after the last.
        languages: of each hole what it must be a text of, or None; a completion is one hole.
        is_scaffold: what is given within the region is part of the answer, and not of the prompt.
    """

    request_id: str
    canvas: Canvas
    params: GenerationParams
    policy: Policy
    blocks: BlockPlan
    steps: int
    draft: DraftPlan | None = None
    has_holes: bool = False
    languages: tuple[Language | None, ...] = ()
    is_scaffold: bool = False

    @property
    def may_pass_blocks(self) -> bool:
        """Whether some blocks may be full from the start; they are computed with the next one
        that is not."""
        return self.draft is not None or bool(self.canvas.given)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that came with the request, those between holes included."""
        return len(self.canvas.prompt) if self.is_scaffold else self.canvas.num_given

    @property
    def prompt(self) -> tuple[int, ...]:
        """The token ids before the completion."""
        return self.canvas.prompt

    @property
    def num_shadows(self) -> int:
        """Most shadows that a forward computes of it."""
        return self.blocks.max_rows if self.policy.casts_shadows else 0

    def integers(self) -> SlotIntegers:
        """The whole numbers of its slot."""
        params, policy = self.params, self.policy
        return SlotIntegers(
            prompt_length=len(self.prompt),
            seed=params.seed or 0,
            top_k=params.top_k or 0,
            length=params.max_tokens,
            gap=params.gap or 1,
            blind=int(policy.is_blind),
            adaptive=int(policy.adaptive),
            timed=int(policy.timed),
            max_per_step=policy.max_per_step,
            max_least=policy.max_least,
            stable=policy.stable,
            looks_back=int(policy.looks_back),
            shadowed=int(policy.shadowed),
            planned=int(policy.planned),
            tosses=int(policy.tosses),
            remask_rescaled=int(policy.remask_rescaled),
            max_rounds=policy.max_rounds,
        )

    def reals(self) -> SlotReals:
        """The real numbers of its slot."""
        policy = self.policy
        return SlotReals(
            temperature=1.0 if self.params.temperature is None else self.params.temperature,
            top_p=1.0 if self.params.top_p is None else self.params.top_p,
            min_p=self.params.min_p,
            frequency_penalty=self.params.frequency_penalty,
            presence_penalty=self.params.presence_penalty,
            confidence=policy.confidence,
            margin=policy.margin,
            entropy=policy.entropy,
            hitting_time=policy.hitting_time,
            position_bias=policy.position_bias,
            credit=policy.credit,
            log_threshold=_log(policy.threshold),
            factor=policy.factor,
            entropy_bound=policy.entropy_bound,
            max_share=policy.max_share,
            log_edit_threshold=_log(policy.edit_threshold),
            log_edit_margin=_log(policy.edit_margin),
            log_doubt=_log(policy.doubt),
            remask=policy.remask,
            remask_confidence=policy.remask_confidence,
            loop_start=policy.loop_start,
            loop_end=policy.loop_end,
            loop_alpha=policy.loop_alpha,
        )


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf
