"""How a route spells its choices, in a stream and in a whole answer.

One path leads from frames to the wire (`streaming.py`, `answering.py`); what differs between
routes is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.server.logprobs import SettledToken, spell_for_chat, spell_for_text

Json = dict[str, Any]


class Shape(Protocol):
    """A route's spelling. A choice is one of the `choices` of a chunk or of an answer."""

    @property
    def id_prefix(self) -> str: ...

    @property
    def whole_object(self) -> str: ...

    @property
    def chunk_object(self) -> str: ...

    def opening(self, index: int) -> Json | None:
        """The choice that begins a stream, before any text."""
        ...

    def piece(self, index: int, text: str, settled: Sequence[SettledToken]) -> Json:
        """Settled text of a stream, with its log-probabilities."""
        ...

    def silence(self, index: int, payload: Json | None = None) -> Json:
        """A choice without text, for a frame; with `payload` the frame is inside of it."""
        ...

    def closing(self, index: int, last: Frame) -> Json:
        """The choice that ends a stream."""
        ...

    def whole(
        self, index: int, text: str, settled: Sequence[SettledToken] | None, last: Frame
    ) -> Json:
        """A choice of a whole answer; `settled` is None when nobody asked."""
        ...


class ChatShape:
    """Chat completions."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> Json:
        """The role."""
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str, settled: Sequence[SettledToken]) -> Json:
        """Settled text as append-only `content`."""
        return self._delta(index, {"content": text}, logprobs=spell_for_chat(settled))

    def silence(self, index: int, payload: Json | None = None) -> Json:
        """An empty delta, or the frame where proxies let it pass."""
        if payload is None:
            return self._delta(index, {})
        # In a list, by its number: helpers that add deltas up to a message collect such entries,
        # and raise where they find a list of anything else.
        frames = [{"index": payload["seq"], **payload}]
        extra = {"provider_specific_fields": {"diffusion": frames}}
        return self._delta(index, {"content": "", **extra})

    def closing(self, index: int, last: Frame) -> Json:
        """The reason of the end."""
        return self._delta(index, {}, finish_reason=finish_reason_of(last))

    def whole(
        self, index: int, text: str, settled: Sequence[SettledToken] | None, last: Frame
    ) -> Json:
        """The assistant's message."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if settled is None else spell_for_chat(settled) or _NO_TOKENS,
            "finish_reason": finish_reason_of(last),
        }

    @staticmethod
    def _delta(
        index: int, delta: Json, *, logprobs: Json | None = None, finish_reason: str | None = None
    ) -> Json:
        return {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }


_NO_TOKENS: Json = {"content": [], "refusal": None}


class TextShape:
    """Text completions.

    Args:
        echoes: for each choice the prompt that comes before its text, or none at all.
    """

    id_prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, echoes: Sequence[str] = ()) -> None:
        self._echoes = echoes

    def opening(self, index: int) -> Json | None:
        """The echoed prompt."""
        return self._text(index, self._echoes[index]) if self._echoes else None

    def piece(self, index: int, text: str, settled: Sequence[SettledToken]) -> Json:
        """Settled text."""
        return self._text(index, text, logprobs=spell_for_text(settled))

    def silence(self, index: int, payload: Json | None = None) -> Json:
        """No text; `protocol.py` refuses frames inside of a text."""
        assert payload is None
        return self._text(index, "")

    def closing(self, index: int, last: Frame) -> Json:
        """The reason of the end."""
        return self._text(index, "", finish_reason=finish_reason_of(last))

    def whole(
        self, index: int, text: str, settled: Sequence[SettledToken] | None, last: Frame
    ) -> Json:
        """The whole text, after its prompt if that is echoed."""
        return self._text(
            index,
            (self._echoes[index] if self._echoes else "") + text,
            logprobs=None if settled is None else spell_for_text(settled),
            finish_reason=finish_reason_of(last),
        )

    @staticmethod
    def _text(
        index: int, text: str, *, logprobs: Json | None = None, finish_reason: str | None = None
    ) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


class InfillShape(TextShape):
    """Infills: the text from the first hole to the last, and in the end each hole's."""

    id_prefix = "infill"
    whole_object = "infill"
    chunk_object = "infill.chunk"

    def closing(self, index: int, last: Frame) -> Json:
        """What fills each hole."""
        return super().closing(index, last) | {"fills": list(last.fills)}

    def whole(
        self, index: int, text: str, settled: Sequence[SettledToken] | None, last: Frame
    ) -> Json:
        """The whole text, and what fills each hole."""
        return super().whole(index, text, settled, last) | {"fills": list(last.fills)}


class EditShape(TextShape):
    """Edits: the refined text."""

    id_prefix = "edit"
    whole_object = "edit"
    chunk_object = "edit.chunk"


def finish_reason_of(frame: Frame) -> str:
    """OpenAI's word for why an answer ended."""
    return "length" if frame.finish_reason is FinishReason.LENGTH else "stop"
