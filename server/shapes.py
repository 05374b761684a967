"""How a route spells its choices, in a stream and in a whole answer.

One path leads from frames to the wire (`streaming.py`, `answering.py`); what differs between
routes is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.server.logprobs import (
    SettledToken,
    spell_for_chat,
    spell_for_infill,
    spell_for_text,
)
from diffusiongpt.server.parts import (
    Call,
    CallArguments,
    CallBegin,
    Collected,
    Content,
    Part,
    Reasoning,
)
from diffusiongpt.server.reading import ChoiceReader, Reading

Json = dict[str, Any]


class Shape(Protocol):
    """A route's spelling. A choice is one of the `choices` of a chunk or of an answer."""

    @property
    def id_prefix(self) -> str: ...

    @property
    def whole_object(self) -> str: ...

    @property
    def chunk_object(self) -> str: ...

    def reader(self) -> ChoiceReader:
        """What reads one choice's frames."""
        ...

    def opening(self, index: int) -> Json | None:
        """The choice that begins a stream, before any text."""
        ...

    def piece(self, index: int, part: Part, settled: Sequence[SettledToken]) -> Json:
        """A settled part of a stream, with its log-probabilities."""
        ...

    def silence(self, index: int, payload: Json | None = None) -> Json:
        """A choice without text, for a frame; with `payload` the frame is inside of it."""
        ...

    def closing(self, index: int, last: Frame, *, has_called: bool) -> Json:
        """The choice that ends a stream."""
        ...

    def whole(
        self, index: int, parts: Collected, settled: Sequence[SettledToken] | None, last: Frame
    ) -> Json:
        """A choice of a whole answer; `settled` is None when nobody asked."""
        ...


class ChatShape:
    """Chat completions.

    Args:
        reading: how answers are read. decode: the text of token ids.
    """

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self,
        reading: Reading | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._reading = reading or Reading()
        self._decode = decode

    def reader(self) -> ChoiceReader:
        """Thinking and calls, as the request has it."""
        return self._reading.reader(self._decode)

    def opening(self, index: int) -> Json:
        """The role; where there may be calls, there may never be content."""
        content = None if self._reading.functions else ""
        return self._delta(index, {"role": "assistant", "content": content})

    def piece(self, index: int, part: Part, settled: Sequence[SettledToken]) -> Json:
        """A part as an append-only delta."""
        return self._delta(index, _spell_part(part), logprobs=spell_for_chat(settled))

    def silence(self, index: int, payload: Json | None = None) -> Json:
        """An empty delta, or the frame where proxies let it pass."""
        if payload is None:
            return self._delta(index, {})
        # In a list, by its number: helpers that add deltas up to a message collect such entries,
        # and raise where they find a list of anything else.
        frames = [{"index": payload["seq"], **payload}]
        extra = {"provider_specific_fields": {"diffusion": frames}}
        return self._delta(index, {"content": "", **extra})

    def closing(self, index: int, last: Frame, *, has_called: bool) -> Json:
        """The reason of the end."""
        return self._delta(index, {}, finish_reason=finish_reason_of(last, has_called=has_called))

    def whole(
        self, index: int, parts: Collected, settled: Sequence[SettledToken] | None, last: Frame
    ) -> Json:
        """The assistant's message."""
        has_called = bool(parts.calls)
        return {
            "index": index,
            "message": _spell_message(parts),
            "logprobs": None if settled is None else spell_for_chat(settled) or _NO_TOKENS,
            "finish_reason": finish_reason_of(last, has_called=has_called),
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


def _spell_part(part: Part) -> Json:
    match part:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text}
        case CallBegin(index, id, name):
            return {"tool_calls": [{"index": index, **_spell_call(Call(id, name))}]}
        case CallArguments(index, fragment):
            return {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}


def _spell_message(parts: Collected) -> Json:
    message: Json = {
        "role": "assistant",
        "content": None if parts.calls and not parts.content else parts.content,
        "refusal": None,
    }
    if parts.reasoning:
        message["reasoning_content"] = parts.reasoning
    if parts.calls:
        message["tool_calls"] = [_spell_call(call) for call in parts.calls]
    return message


def _spell_call(call: Call) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


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

    def reader(self) -> ChoiceReader:
        """All of a text is content."""
        return ChoiceReader()

    def opening(self, index: int) -> Json | None:
        """The echoed prompt."""
        return self._text(index, self._echoes[index]) if self._echoes else None

    def piece(self, index: int, part: Part, settled: Sequence[SettledToken]) -> Json:
        """Settled text."""
        assert isinstance(part, Content)
        return self._text(index, part.text, logprobs=spell_for_text(settled))

    def silence(self, index: int, payload: Json | None = None) -> Json:
        """No text; `protocol.py` refuses frames inside of a text."""
        assert payload is None
        return self._text(index, "")

    def closing(self, index: int, last: Frame, *, has_called: bool = False) -> Json:
        """The reason of the end."""
        return self._text(index, "", finish_reason=finish_reason_of(last, has_called=has_called))

    def whole(
        self, index: int, parts: Collected, settled: Sequence[SettledToken] | None, last: Frame
    ) -> Json:
        """The whole text, after its prompt if that is echoed."""
        return self._text(
            index,
            (self._echoes[index] if self._echoes else "") + parts.content,
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

    def piece(self, index: int, part: Part, settled: Sequence[SettledToken]) -> Json:
        """Settled text, with the log-probabilities of what the model wrote of it."""
        assert isinstance(part, Content)
        return self._text(index, part.text, logprobs=spell_for_infill(settled))

    def closing(self, index: int, last: Frame, *, has_called: bool = False) -> Json:
        """What fills each hole."""
        return super().closing(index, last, has_called=has_called) | self._fills(last)

    def whole(
        self, index: int, parts: Collected, settled: Sequence[SettledToken] | None, last: Frame
    ) -> Json:
        """The whole text, and what fills each hole."""
        logprobs = None if settled is None else spell_for_infill(settled) or {"content": []}
        reason = finish_reason_of(last)
        text = self._text(index, parts.content, logprobs=logprobs, finish_reason=reason)
        return text | self._fills(last)

    @staticmethod
    def _fills(last: Frame) -> Json:
        reasons = [reason.value for reason in last.fill_reasons]
        return {"fills": list(last.fills), "fill_finish_reasons": reasons}


class EditShape(TextShape):
    """Edits: the refined text."""

    id_prefix = "edit"
    whole_object = "edit"
    chunk_object = "edit.chunk"


def finish_reason_of(frame: Frame, *, has_called: bool = False) -> str:
    """OpenAI's word for why an answer ended."""
    if frame.finish_reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if has_called else "stop"
