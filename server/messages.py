"""The messages of a chat, calls of tools and what they returned included."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from diffusiongpt.server.wire import FieldError, Quickly, Wire, show


class TextPart(Wire):
    """A content part; only text can be read."""

    type: str
    text: str = ""

    @model_validator(mode="after")
    def _only_text(self) -> TextPart:
        if self.type != "text":
            raise ValueError(f"content parts must have type 'text', got {self.type!r}")
        return self


Text = Annotated[str | Quickly[TextPart], Field(union_mode="left_to_right")]


def join(content: str | Sequence[TextPart]) -> str:
    """A content as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class Prediction(Wire):
    """What the answer will likely be; the draft that it begins with."""

    type: Literal["content"]
    content: Text

    @property
    def text(self) -> str:
        """The content as one text."""
        return join(self.content)


class CalledFunction(Wire):
    """A function that was called, and with what."""

    name: str
    arguments: str = Field(description="the JSON text of an object")


class MessageCall(Wire):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


_SAYS = {"content": {"type": ["string", "array"]}}
_CALLS_NOTHING = {"tool_calls": {"anyOf": [{"type": "null"}, {"maxItems": 0}]}}
# What a message of each role needs, for the OpenAPI document; `Message` checks it.
_BY_ROLE: list[dict[str, Any]] = [
    {
        "properties": {"role": {"enum": ["system", "developer", "user"]}} | _SAYS | _CALLS_NOTHING,
        "required": ["content"],
    },
    {"properties": {"role": {"const": "assistant"}, **_SAYS}, "required": ["content"]},
    {
        "properties": {
            "role": {"const": "assistant"},
            "tool_calls": {"type": "array", "minItems": 1},
        },
        "required": ["tool_calls"],
    },
    {
        "properties": {"role": {"const": "tool"}, "tool_call_id": {"type": "string"}}
        | _SAYS
        | _CALLS_NOTHING,
        "required": ["content", "tool_call_id"],
    },
]


def _tell_roles(schema: dict[str, Any]) -> None:
    schema["anyOf"] = _BY_ROLE


class Message(Wire):
    """One message of a chat."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", json_schema_extra=_tell_roles
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | Quickly[TextPart] | None, Field(union_mode="left_to_right", description="its text")
    ] = None
    tool_calls: Quickly[MessageCall] | None = Field(None, description="calls of the assistant")
    tool_call_id: str | None = Field(None, description="the call whose result a tool's message is")
    reasoning_content: str | None = Field(None, description="the assistant's thinking")

    @model_validator(mode="after")
    def _has_what_its_role_needs(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls belong to an assistant message, got role {self.role!r}")
        if self.content is None and not self.tool_calls:
            raise ValueError(f"content is required of a message with role {self.role!r}")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id is required of a message with role 'tool'")
        for call in self.tool_calls or ():
            read_arguments(call.function.arguments)
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        return join(self.content or "")

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        # OpenAI's newer word for the same thing; templates know the older one.
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [_call_for_template(call) for call in self.tool_calls]
        if self.tool_call_id is not None and self.role == "tool":
            message["tool_call_id"] = self.tool_call_id
        if self.reasoning_content is not None and self.role == "assistant":
            message["reasoning_content"] = self.reasoning_content
        return message


def read_arguments(text: str) -> dict[str, Any]:
    """The arguments of a call; raises ValueError with a sentence."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"arguments must be the JSON text of an object, got {show(text)}")
    return value


def _call_for_template(call: MessageCall) -> dict[str, Any]:
    arguments = read_arguments(call.function.arguments)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def check_results(messages: Sequence[Message]) -> None:
    """Every call has its result right after it, and every result its call; raises FieldError."""
    open_ids: set[str] = set()
    for index, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in open_ids:
                raise FieldError(
                    f"messages.{index}.tool_call_id",
                    "a message with role 'tool' must answer a call in tool_calls of the assistant "
                    f"message before it, once, got tool_call_id {show(message.tool_call_id)}",
                )
            open_ids.discard(message.tool_call_id)
            continue
        _refuse_open(open_ids, index)
        ids = [call.id for call in message.tool_calls or ()]
        open_ids = set(ids)
        if len(open_ids) < len(ids):
            raise FieldError(
                f"messages.{index}.tool_calls", f"tool_calls must have an id each, got {show(ids)}"
            )
    _refuse_open(open_ids, len(messages))


def _refuse_open(open_ids: set[str], index: int) -> None:
    if open_ids:
        raise FieldError(
            f"messages.{index}",
            "an assistant message with tool_calls must be followed by a message with role 'tool' "
            f"for each of them, got none for tool_call_id {show(min(open_ids))}",
        )
