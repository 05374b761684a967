"""What a record is: a text, or messages with roles; anything else is refused by its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusiongpt.training.config import ConfigError

Record = dict[str, Any]


def checked(record: Mapping[str, Any], where: str) -> Record:
    """A record whose texts are texts; null stands for an empty one.

    Raises:
        ConfigError: says where, what was found and what is accepted.
    """
    if "text" not in record and "messages" not in record:
        has = ", ".join(sorted(record)) or "nothing"
        raise ConfigError(f"{where} has neither text nor messages; it has {has}")
    found = {key: value for key, value in record.items() if value is not None}
    if "messages" in found:
        found["messages"] = _messages(found["messages"], f"{where}: messages")
    elif "messages" in record and "text" not in found:
        found["messages"] = []
    if "text" in found or "messages" not in found:
        found["text"] = _text(found.get("text"), f"{where}: text")
    return found


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list of objects, got {shown(value)}")
    messages = []
    for each in value:
        if not isinstance(each, Mapping) or not isinstance(each.get("role"), str):
            raise ConfigError(f"{where} must be objects with a role, got {shown(each)}")
        messages.append({**each, "content": _text(each.get("content"), f"{where}: content")})
    return messages


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be a text or null, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where} must be Unicode, got {value[error.start]!r}, half of a character, in "
            f"position {error.start}"
        ) from error
    return value


def shown(value: Any) -> str:
    """A value as a refusal shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
