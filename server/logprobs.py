"""Log-probabilities on the wire, in the shapes of chat and of text completions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusiongpt.engine.frame import Frame
from diffusiongpt.engine.logprobs import PositionLogprobs, TokenLogprob


class SettledToken(NamedTuple):
    """A settled token's log-probabilities, and where its text begins in the answer."""

    logprobs: PositionLogprobs
    text_offset: int


class Ledger:
    """Keeps what was committed in any order until it has settled, and hands it out in order.

    Args:
        text_offset: characters of the answer before its first token.
    """

    def __init__(self, text_offset: int = 0) -> None:
        self._waiting: dict[int, PositionLogprobs] = {}
        self._num_taken = 0
        self._text_offset = text_offset
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, frame: Frame) -> list[SettledToken]:
        """Note a frame's commits; what has settled with it, by position."""
        self._waiting |= {each.position: each for each in frame.logprobs}
        settled = range(self._num_taken, frame.settled)
        self._num_taken = max(self._num_taken, frame.settled)
        return [self._settle(self._waiting.pop(at)) for at in settled if at in self._waiting]

    def _settle(self, logprobs: PositionLogprobs) -> SettledToken:
        settled = SettledToken(logprobs, self._text_offset)
        self._text_offset += len(self._decoder.decode(logprobs.token.data or b""))
        return settled


def spell_for_chat(settled: Sequence[SettledToken]) -> dict[str, Any] | None:
    """The `logprobs` of a chat choice; None without a token."""
    if not settled:
        return None
    content = [
        _spell_token(each.logprobs.token)
        | {"top_logprobs": [_spell_token(token) for token in each.logprobs.top]}
        for each in settled
    ]
    return {"content": content, "refusal": None}


def _spell_token(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": round(token.logprob, 6),
        "bytes": None if token.data is None else list(token.data),
    }
