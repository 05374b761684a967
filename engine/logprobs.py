"""Log-probabilities of committed tokens, for those who ask. Torch-free.

A diffusion model has no left-to-right factors, so the number says what it can: the
log-probability at temperature 1 that the model gave the token in the step that committed it,
given the canvas as it then was, after bans, biases and penalties.
"""

from __future__ import annotations

from typing import NamedTuple

# What `GenerationParams.logprobs` may ask for.
MAX_LOGPROBS = 20


class TokenLogprob(NamedTuple):
    """A token and its log-probability.

    `text` is the token's own text; `data` are its bytes, None where it stands for none (special
    tokens, whose `text` is their name).
    """

    token_id: int
    text: str
    data: bytes | None
    logprob: float


class PositionLogprobs(NamedTuple):
    """A committed position of the completion: its token, and the most likely ones, best first."""

    position: int
    token: TokenLogprob
    top: tuple[TokenLogprob, ...]
