"""How a model's chats are written: its tools and its thinking, as data. Torch-free.

What a chat template says of itself is read from its text: which marks enclose its thinking, and
(`tool_formats.py`) how its model is taught to write a call. For a template that cannot describe
tools this module has the words (`tell_tools`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.tool_formats import FORMATS, HERMES, ToolFormat

Message = Mapping[str, Any]

# What a request may give its chat template beside the messages.
MAX_TEMPLATE_NAMES = 32
MAX_TEMPLATE_CHARACTERS = 8192
MAX_TEMPLATE_DEPTH = 8
# A template may repeat a text so many times.
MAX_TEMPLATE_NUMBER = 1_000_000
# What we or the renderer give to templates, and what Jinja has of its own.
_TAKEN_NAMES = frozenset(
    {
        *("messages", "tools", "documents", "conversations", "chat_template"),
        *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
        *("raise_exception", "strftime_now", "range", "dict", "namespace", "lipsum", "cycler"),
        *("joiner", "loop", "self", "caller", "varargs", "kwargs"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """How a model thinks before it answers.

    Attributes:
        opening, closing: the marks around it.
        can_switch: the template takes `enable_thinking`.
        opened: for which values of `enable_thinking` (None: not given) the template itself has
            written the opening mark when the answer begins.
    """

    opening: str
    closing: str
    can_switch: bool = False
    opened: frozenset[bool | None] = field(default_factory=frozenset)


THINKING_MARKS = (("<think>", "</think>"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatStyle:
    """What a chat template can do.

    Attributes:
        knows_tools: it describes tools itself. tool_format: how the model is told to call them.
        thinking: None where the template knows no thinking.
    """

    knows_tools: bool = False
    tool_format: ToolFormat = HERMES
    thinking: Thinking | None = None


PLAIN_CHAT = ChatStyle()


def visible_marks() -> frozenset[str]:
    """Marks that are text of an answer even where a tokenizer calls them special."""
    calls = frozenset().union(*(form.marks for form in FORMATS))
    return calls.union(*THINKING_MARKS)


def marks_of_template(template: str) -> tuple[str, str] | None:
    """The marks of the thinking that a template knows."""
    for opening, closing in THINKING_MARKS:
        if closing in template:
            return opening, closing
    return None


def check_template_values(
    values: Mapping[str, Any], template: str, taken: Collection[str] = ()
) -> None:
    """Refuse what a chat template cannot be given, or what it would never look at.

    Args:
        taken: names that are given to the template anyway.

    Raises:
        InvalidRequest: a name that is taken or that the template does not have, too many of
            them, or values that are too long, too deep or too large.
    """
    if len(values) > MAX_TEMPLATE_NAMES:
        raise _refusal(f"takes at most {MAX_TEMPLATE_NAMES} names, got {len(values)}")
    for name in values:
        if name in _TAKEN_NAMES or name in taken:
            raise _refusal(f"cannot set {name}, which the server itself gives to the template")
        if not name.isidentifier() or not re.search(rf"\b{re.escape(name)}\b", template):
            raise _refusal(f"must hold names that this model's chat template has, got {name!r:.80}")
    _check_value(values, MAX_TEMPLATE_DEPTH + 1)
    length = len(json.dumps(values, ensure_ascii=False))
    if length > MAX_TEMPLATE_CHARACTERS:
        raise _refusal(f"takes at most {MAX_TEMPLATE_CHARACTERS} characters of JSON, got {length}")


def _check_value(value: object, depth: int) -> None:
    if isinstance(value, int | float) and not abs(value) <= MAX_TEMPLATE_NUMBER:
        raise _refusal(f"takes numbers of at most {MAX_TEMPLATE_NUMBER}, got {value!r:.80}")
    if not isinstance(value, Mapping | list | tuple):
        return
    if depth == 0:
        raise _refusal(f"may be nested {MAX_TEMPLATE_DEPTH} levels deep, got more")
    for each in value.values() if isinstance(value, Mapping) else value:
        _check_value(each, depth - 1)


def _refusal(what: str) -> InvalidRequest:
    return InvalidRequest(f"chat_template_kwargs {what}", "chat_template_kwargs")


def is_open(text: str, opening: str, closing: str) -> bool:
    """Whether a text ends inside of the marks."""
    return text.rfind(opening) > text.rfind(closing)


def tell_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The same chat for a template that knows no tools: all of it as plain text.

    Tools are described at the end of the system message, calls stand in the assistant's text as
    `HERMES` writes them, and what tools return comes as a message of the user.
    """
    told: list[dict[str, Any]] = []
    for message in messages:
        role = message.get("role", "user")
        if role == "tool":
            response = f"<tool_response>\n{message.get('content', '')}\n</tool_response>"
            if told and "responses" in told[-1]:
                told[-1]["content"] += "\n" + response
            else:
                told.append({"role": "user", "content": response, "responses": True})
        else:
            told.append({"role": role, "content": _with_calls(message)})
    for each in told:
        each.pop("responses", None)
    if not tools:
        return list(told)
    description = _describe(tools)
    if told and told[0]["role"] == "system":
        told[0]["content"] += "\n\n" + description
        return list(told)
    return [{"role": "system", "content": description}, *told]


def _with_calls(message: Message) -> str:
    parts = [message.get("content") or ""]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        value = {"name": function["name"], HERMES.arguments: function["arguments"]}
        parts.append(f"{HERMES.opening}\n{_to_json(value)}\n{HERMES.closing}")
    return "\n".join(part for part in parts if part)


def _describe(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(_to_json(tool["function"]) for tool in tools)
    return (
        f"You can use these tools:\n<tools>\n{listed}\n</tools>\n"
        "To use one, write its name and arguments so:\n"
        f'{HERMES.opening}\n{{"name": "...", "{HERMES.arguments}": {{...}}}}\n{HERMES.closing}'
    )


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
