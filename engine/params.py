"""What a request may ask of the sampler. Values only: frozen, checked, torch-free."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.draft import Draft
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.logprobs import MAX_LOGPROBS
from diffusiongpt.engine.policies import MAX_ROUNDS, PRESETS

MAX_STEPS = 65_536
MAX_STABLE = 256
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
CacheName = Literal["off", "prefix", "dual"]
MAX_BIASED = 1024
MAX_TOP_K = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EditParams:
    """When a filled position gets another token (LLaDA2.1, arXiv 2602.08676).

    Attributes:
        threshold: its most likely token is another one, and more probable than this.
        margin: and at least this many times as probable as the token it replaces.
        doubt: a token of a full block is masked again, and drawn anew, when a look at the
            block gives it less than this probability; 0 is off.
        max_rounds: how often a block is looked at again after it is full; 0 edits only while
            it fills. A round without a change, or one that comes back to an earlier state of
            the block, is the last.
    """

    threshold: float = 0.9
    margin: float = 1.0
    doubt: float = 0.0
    max_rounds: int = 16

    def __post_init__(self) -> None:
        _check_number("edits.threshold", self.threshold, 0.0, 1.0)
        _check_number("edits.margin", self.margin, 1.0, math.inf)
        _check_number("edits.doubt", self.doubt, 0.0, 1.0)
        if self.doubt and not self.max_rounds:
            raise InvalidRequest(
                f"edits.doubt={self.doubt} needs edits.max_rounds of at least 1, got 0", "edits"
            )
        _check_integer("edits.max_rounds", self.max_rounds, 0, MAX_ROUNDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """How one completion is denoised; None means the model's own default.

    Attributes:
        max_tokens: length of the completion's canvas, in tokens.
        policy: name of a commit policy (`policies.PRESETS`).
        steps: budget of denoising steps for the whole completion, in 1..max_tokens. Policies
            with an equal share spread their commits over it (default: one token a step);
            adaptive ones (`threshold`, `factor`, `entropy_bound`) treat it as an upper limit
            (default: none);
            `ancestral` divides time into that many intervals (default: continuous time);
            `first_hitting` takes none; the `remdm` policies must have it, up to MAX_STEPS.
        block_length: positions denoised at a time, left to right (semi-autoregressive);
            None is the model's own, 0 is the whole canvas at once.
        lookahead: masks kept visible after the block while the canvas is longer than the
            model's context (bidirectional models); None is one block.
        temperature: of the token draw; 0 takes the most likely token. Ranks are never tempered.
        top_p, top_k, min_p: truncation of the token draw (1.0, 0 and 0.0 are off). `min_p` leaves
            out what is less than that many times as probable as the most likely token.
        logit_bias: (token id, addend) of the logits, before anything looks at them; what the
            model must never emit stays banned.
        frequency_penalty, presence_penalty: what a token's logit loses for each of its
            occurrences among the tokens that the completion holds when a step begins, and for
            occurring at all. Tokens committed in the same step do not see each other.
        seed: 64-bit; None draws one. The same seed gives the same tokens in any company.
        threshold, factor, entropy_bound: the preset's gate, replaced.
        max_per_step: what an adaptive policy commits in a step at most, where the budget of steps
            leaves it the choice.
        stable: steps in a row in which the most likely token must have been the same, 1..256.
        credit: weight alpha of the credit that the policy `credit` adds to logits.
        position_bias: taken from a position's score for every position between it and the
            leftmost mask: pressure to write from left to right.
        remask: share of filled tokens that a step of the `remdm` policies masks again, at most.
        gap: commits of one step are at least this many positions apart where the gates allow
            a choice (1 is off).
        logprobs: None, or how many of the most likely tokens come with each committed token and
            its log-probability (`logprobs.py` says what that is).
        edits: whether filled positions of the block may get another token, and when; None is
            the policy's own way, True the defaults of `EditParams`. Only for models that
            predict filled positions. Text settles when its block is done.
        cache: an approximation for bidirectional models, never on unless asked for: while a block
            is denoised, what the model keeps of the rest of the canvas is as old as the block's
            first step; "prefix": of what lies before the block, "dual": before and after it.
            None and "off": nothing is approximated (block-causal models keep what is exact).
        draft: what the completion begins with instead of masks, and how much of it is redone.
        constraint: the language that the completion's text is a word of, always.
        scaffold: positions that each value of a `json_schema` gets at most; the keys and marks
            around them are on the canvas from the start. The canvas is as long as they take.
        stop: strings that end the completion and are not part of it.
        ignore_eos: an end-of-text token does not end the completion.
        watch: whether frames carry every position's text, not only the settled text.
    """

    max_tokens: int = 256
    policy: str | None = None
    steps: int | None = None
    block_length: int | None = None
    lookahead: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    max_per_step: int | None = None
    stable: int | None = None
    credit: float | None = None
    position_bias: float | None = None
    remask: float | None = None
    gap: int | None = None
    logprobs: int | None = None
    edits: bool | EditParams | None = None
    cache: CacheName | None = None
    draft: Draft | None = None
    constraint: Constraint | None = None
    scaffold: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    watch: bool = False

    def __post_init__(self) -> None:
        _check_integer("max_tokens", self.max_tokens, 1, None)
        if self.policy is not None and self.policy not in PRESETS:
            raise InvalidRequest(
                f"policy must be one of {', '.join(PRESETS)}, got {self.policy!r}", "policy"
            )
        if self.policy is not None and PRESETS[self.policy].tosses:
            _check_integer("steps", self.steps, 1, MAX_STEPS)
        else:
            _check_integer("steps", self.steps, 1, self.max_tokens, "max_tokens")
        _check_integer("block_length", self.block_length, 0, None)
        _check_integer("lookahead", self.lookahead, 0, None)
        _check_number("temperature", self.temperature, 0.0, 2.0)
        _check_number("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _check_integer("top_k", self.top_k, 0, MAX_TOP_K)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_integer("seed", self.seed, SEED_MIN, SEED_MAX)
        _check_number("threshold", self.threshold, 0.0, 1.0)
        _check_number("factor", self.factor, 0.0, math.inf)
        _check_number("entropy_bound", self.entropy_bound, 0.0, math.inf)
        _check_integer("max_per_step", self.max_per_step, 1, MAX_STEPS)
        if self.stable is not None:
            _check_integer("stable", self.stable, 1, MAX_STABLE)
        _check_number("credit", self.credit, 0.0, 10.0, above_low=True)
        _check_number("position_bias", self.position_bias, 0.0, math.inf)
        _check_number("remask", self.remask, 0.0, 1.0, above_low=True)
        _check_integer("gap", self.gap, 1, None)
        _check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.edits is not None and not isinstance(self.edits, bool | EditParams):
            raise InvalidRequest(
                f"edits must be true, false or EditParams, got {self.edits!r}", "edits"
            )
        if self.cache is not None and self.cache not in get_args(CacheName):
            accepted = ", ".join(get_args(CacheName))
            raise InvalidRequest(f"cache must be one of {accepted}, got {self.cache!r}", "cache")
        if self.draft is not None and not isinstance(self.draft, Draft):
            raise InvalidRequest(f"draft must be a Draft, got {self.draft!r}", "draft")
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise InvalidRequest(
                f"constraint must be a Constraint, got {type(self.constraint).__name__}",
                "constraint",
            )
        self._check_scaffold()
        self._check_stop()
        self._check_bias()

    def _check_scaffold(self) -> None:
        _check_integer("scaffold", self.scaffold, 1, None)
        kind = None if self.constraint is None else self.constraint.kind
        if self.scaffold is not None and kind != "json_schema":
            got = "no constraint" if kind is None else f"a {kind}"
            raise InvalidRequest(f"scaffold goes with a json_schema, got {got}", "scaffold")

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(
                f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}", "stop"
            )
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise InvalidRequest(
                    f"each stop string must have 1 to {MAX_STOP_CHARACTERS} characters, "
                    f"got {text if not isinstance(text, str) else text[:20]!r}",
                    "stop",
                )

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_BIASED:
            raise InvalidRequest(
                f"logit_bias takes at most {MAX_BIASED} tokens, got {len(self.logit_bias)}",
                "logit_bias",
            )
        if len({token_id for token_id, _ in self.logit_bias}) < len(self.logit_bias):
            raise InvalidRequest("logit_bias must name each token once", "logit_bias")
        for token_id, value in self.logit_bias:
            _check_integer("logit_bias", token_id, 0, None)
            _check_number("logit_bias", value, -100.0, 100.0)

    @property
    def is_penalized(self) -> bool:
        """Whether what the completion holds changes its logits."""
        return bool(self.frequency_penalty or self.presence_penalty)

    def replace(self, **changes: object) -> GenerationParams:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def seeds_of(seed: int | None, count: int) -> list[int | None]:
    """The seeds of `count` completions that were asked for with one: seed, seed + 1, ..."""
    if seed is None:
        return [None] * count
    return [(seed + index - SEED_MIN) % 2**64 + SEED_MIN for index in range(count)]


def _check_integer(
    name: str, value: int | None, low: int, high: int | None, high_name: str | None = None
) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be an integer, got {value!r}", name)
    if value < low or (high is not None and value > high):
        top = "" if high is None else f"{high_name}={high}" if high_name else str(high)
        accepted = f"at least {low}" if high is None else f"in {low}..{top}"
        raise InvalidRequest(f"{name} must be {accepted}, got {value}", name)


def _check_number(
    name: str, value: float | None, low: float, high: float, *, above_low: bool = False
) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number, got {value!r}", name)
    if not (low < value if above_low else low <= value) or not value <= high or math.isnan(value):
        opening = "(" if above_low else "["
        closing = ")" if math.isinf(high) else "]"
        raise InvalidRequest(
            f"{name} must be in {opening}{low:g}, {high:g}{closing}, got {value!r}", name
        )
