"""Log-probabilities on the wire, in the shapes of chat and of text completions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusiongpt.engine.frame import Frame
from diffusiongpt.engine.logprobs import PositionLogprobs, TokenLogprob


class SettledToken(NamedTuple):
    """A settled token's log-probabilities, where its text begins in the answer, and its hole."""

    logprobs: PositionLogprobs
    text_offset: int
    hole: int = 0


class Ledger:
    """Keeps what was committed in any order until it has settled, and hands it out in order."""

    def __init__(self) -> None:
        self._waiting: dict[int, PositionLogprobs] = {}
        self._num_taken = 0
        self._text_offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, frame: Frame) -> list[SettledToken]:
        """Note a frame's commits; what has settled with it, by position.

        Of an infill, what a stop string has cut off is never told.
        """
        for position in (*frame.remasked, *(position for position, _ in frame.tokens)):
            self._waiting.pop(position, None)
        self._waiting |= {each.position: each for each in frame.logprobs}
        settled = range(self._num_taken, frame.settled)
        self._num_taken = max(self._num_taken, frame.settled)
        holes = frame.holes or ((0, frame.length),)
        return [
            self._settle(self._waiting.pop(at), hole)
            for hole, (start, end) in enumerate(holes)
            for at in range(max(start, settled.start), min(end, settled.stop))
            if at in self._waiting
        ]

    def _settle(self, logprobs: PositionLogprobs, hole: int) -> SettledToken:
        settled = SettledToken(logprobs, self._text_offset, hole)
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


def spell_for_infill(settled: Sequence[SettledToken]) -> dict[str, Any] | None:
    """The `logprobs` of an infill: a chat's entries, each with the hole it is of, from 0."""
    spelled = spell_for_chat(settled)
    if spelled is None:
        return None
    entries = zip(spelled["content"], settled, strict=True)
    return {"content": [entry | {"hole": each.hole} for entry, each in entries]}


def spell_for_text(settled: Sequence[SettledToken]) -> dict[str, Any] | None:
    """The `logprobs` of a text completion, OpenAI's older shape; None without a token.

    As there, the token itself is among the likely ones whether it is one of them or not.
    """
    if not settled:
        return None
    return {
        "tokens": [_name(each.logprobs.token) for each in settled],
        "token_logprobs": [round(each.logprobs.token.logprob, 6) for each in settled],
        "top_logprobs": [
            {
                _name(token): round(token.logprob, 6)
                for token in (*each.logprobs.top, each.logprobs.token)
            }
            for each in settled
        ],
        "text_offset": [each.text_offset for each in settled],
    }


def _name(token: TokenLogprob) -> str:
    """A token as a key: one without a text of its own is spelled by its bytes, as OpenAI does."""
    if token.data is None or token.text.encode() == token.data:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


def _spell_token(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": round(token.logprob, 6),
        "bytes": None if token.data is None else list(token.data),
    }
