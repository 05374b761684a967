"""Prompts and answers as messages, in the form that OpenTelemetry's conventions for GenAI have.

Nothing here is called unless the operator asks for the text of requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.server.parts import Collected

Json = dict[str, Any]


def spell_prompts(messages: Sequence[Mapping[str, Any]]) -> str:
    """`gen_ai.input.messages`: JSON, for an attribute of a span holds no objects."""
    return _to_json([_spell_prompt(message) for message in messages])


def spell_answers(answers: Sequence[tuple[Collected, Frame]]) -> str:
    """`gen_ai.output.messages`: each choice with its last frame."""
    return _to_json([_spell_answer(parts, last) for parts, last in answers])


def _spell_prompt(message: Mapping[str, Any]) -> Json:
    content = message.get("content")
    if "tool_call_id" in message:
        response = {"id": message["tool_call_id"], "response": content}
        return {"role": message["role"], "parts": [{"type": "tool_call_response", **response}]}
    parts = [_part("reasoning", message.get("reasoning_content"))]
    parts += [_part("text", each) for each in (content if isinstance(content, list) else [content])]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append(_call(call.get("id"), function["name"], function["arguments"]))
    return {"role": message["role"], "parts": [part for part in parts if part]}


def _spell_answer(answer: Collected, last: Frame) -> Json:
    parts = [_part("reasoning", answer.reasoning), _part("text", answer.content)]
    parts += [_call(call.id, call.name, call.arguments) for call in answer.calls]
    reason = {FinishReason.LENGTH: "length", FinishReason.STOP: "stop"}.get(
        last.finish_reason or FinishReason.ERROR, "error"
    )
    if answer.calls and reason == "stop":
        reason = "tool_call"
    return {"role": "assistant", "parts": [each for each in parts if each], "finish_reason": reason}


def _part(kind: str, content: object) -> Json:
    """A part; token ids and holes are spelled as the request does. Nothing where there is none."""
    if content is None or content == "":
        return {}
    return {"type": kind, "content": content if isinstance(content, str) else _to_json(content)}


def _call(id: str | None, name: str, arguments: object) -> Json:
    return {"type": "tool_call", "id": id, "name": name, "arguments": arguments}


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
