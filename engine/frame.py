"""What the engine sends out: frames, each the state of one completion after one denoising step.

Torch-free. A frame says what changed since the frame before it; `content` is append-only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

from diffusiongpt.engine.logprobs import PositionLogprobs

ChangeKind = Literal["unmask", "edit"]


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # end-of-text token or stop string
    LENGTH = "length"  # the canvas is full
    ABORT = "abort"  # the caller went away
    ERROR = "error"  # see Frame.error


class TokenChange(NamedTuple):
    """A position of the completion was given a token, or (None) the mask again.

    `confidence` is the token's probability at temperature 1.
    """

    position: int
    token_id: int | None
    confidence: float


class CommittedToken(NamedTuple):
    """A token of a completion, and how it came there.

    `log_prob` is its log-probability at temperature 1 and after bans, given the canvas as it was
    when it was committed. Where each step commits one position, their sum is the logarithm of
    the completion's probability in that order; where a step commits several, each is given the
    same canvas. `step` counts denoising steps from 1, `order` the request's commits from 0;
    those of one step count from left to right. Of a position that was revised, the last counts.
    """

    token_id: int
    position: int
    log_prob: float
    step: int
    order: int


class Change(NamedTuple):
    """A position's text as it stands now.

    `text` is the position's share: where a character spans several tokens, its first token
    carries it once it is complete, and positions whose share changes are sent again.
    """

    position: int
    text: str
    confidence: float
    kind: ChangeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a finished completion cost.

    Attributes:
        prompt_tokens: length of the prompt.
        completion_tokens: filled positions up to and including the end-of-text token.
        steps: denoising steps in which the request committed.
        nfe: forwards the request took part in.
        cached_tokens: tokens of the prompt whose keys and values an earlier request computed.
        accepted_tokens, rejected_tokens: of a draft's tokens, those that are at their place in the
            completion, and those that are not.
        grammar_seconds: what keeping a constraint took in all, outside of the forwards. It differs
            from run to run, so comparisons leave it out.
    """

    prompt_tokens: int
    completion_tokens: int
    steps: int
    nfe: int
    cached_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    grammar_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One completion after one denoising step.

    The first frame of a request has `step` 0 and nothing set but what was given, or its whole
    draft; the second one, after a draft, masks what is redone of it. The last has a
    `finish_reason`, its `usage`, and `unset` for every position that is not part of the
    content, so that replaying set and unset over all frames and joining the positions in
    order gives exactly the concatenated `content`.

    Attributes:
        request_id: the engine's name for the request.
        step: denoising steps so far. steps: planned in all.
        block: index of the block being denoised. block_length: its length.
        length: positions in the completion's canvas. masked: how many are still masked.
        tokens: (position, token id) committed or edited since the frame before; positions
            count from the completion's start.
        committed: the same tokens with their log-probabilities.
        logprobs: of `tokens`, if the request asks for them.
        remasked: positions that were filled before and are masked again.
        set, unset: changes of the positions' text (empty unless the request is watched).
        content: text settled since the frame before; append-only.
        settled: number of leading positions that will not change any more.
        holes: of an infill, the positions (start, end) that each hole's text is of; those after
            a stop string are not.
        fills: of an infill's last frame, the text of each hole. fill_reasons: why it ends, STOP
            by a stop string and LENGTH by the hole's end.
    """

    request_id: str
    step: int
    steps: int
    block: int
    block_length: int
    length: int
    masked: int
    tokens: tuple[tuple[int, int], ...] = ()
    committed: tuple[CommittedToken, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    remasked: tuple[int, ...] = ()
    set: tuple[Change, ...] = ()
    unset: tuple[int, ...] = ()
    content: str = ""
    settled: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    fills: tuple[str, ...] = ()
    fill_reasons: tuple[FinishReason, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    usage: Usage | None = None
