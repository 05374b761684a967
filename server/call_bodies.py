"""Reads one call of a tool, from behind its opening mark on, as its text comes.

There is a reader for each spelling that formats know: an object, a name with an object
(both here), and a name with tagged arguments (`tagged_body.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from diffusiongpt.engine.tool_formats import ToolFormat
from diffusiongpt.server.argument_values import read_value

Functions = Mapping[str, Mapping[str, Any]]
State = Literal["open", "done", "broken"]


class Body(Protocol):
    """Reads one call.

    Attributes:
        state: open while more is to come, done behind the call's end, broken where it is none.
        name: the function's, once it is known to be one of those on offer.
        rest: what came behind the end.
    """

    state: State
    name: str | None
    rest: str

    def feed(self, text: str) -> str:
        """More of the text; gives what it adds to the arguments, which are JSON."""
        ...

    def finish(self, *, is_closed: bool) -> str:
        """No more text comes; `is_closed`: what came next was the closing mark."""
        ...


class ObjectEnd:
    """Finds where a JSON object ends in a text that grows, each character looked at once."""

    def __init__(self) -> None:
        self.position: int | None = None  # of the character after it
        self._num_read = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def read(self, text: str) -> int | None:
        """`position`, once it is known; `text` is the object's beginning so far."""
        while self.position is None and self._num_read < len(text):
            self._look_at(text[self._num_read])
            self._num_read += 1
            if self._depth == 0:
                self.position = self._num_read
        return self.position

    def _look_at(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1


class JsonBody:
    """Reads a call whose arguments are a JSON object: behind a head with the name, or in an
    object with it.

    Args:
        form: how the family writes a call. functions: on offer, by name.
        is_certain: the call is valid, so that arguments can go out as they come; otherwise they
            wait until it is complete.
    """

    def __init__(self, form: ToolFormat, functions: Functions, *, is_certain: bool) -> None:
        self.state: State = "open"
        self.name: str | None = None
        self.rest = ""
        self._functions = functions
        self._key = form.arguments
        self._is_object = form.spelling == "object"
        self._head, self._begun = _heads(form)
        self._is_certain = is_certain
        self._held = ""
        self._end = ObjectEnd()
        self._num_sent: int | None = None  # characters of `_held` that went out as arguments

    def feed(self, text: str) -> str:
        """More of the text; gives what it adds to the arguments."""
        self._held += text
        if not self._is_object or self._is_certain:
            return self._read_behind_head()
        return self._read_object()

    def finish(self, *, is_closed: bool) -> str:
        """A call that has not ended is none."""
        del is_closed
        if self.state == "open":
            self.state = "broken"
        return ""

    def _read_object(self) -> str:
        """An object with the name and the arguments in any order."""
        start = len(self._held) - len(self._held.lstrip())
        if self._held[start:] and self._held[start] != "{":
            self.state = "broken"
            return ""
        end = self._end.read(self._held[start:])
        if end is None:
            return ""
        text, rest = self._held[start : start + end], self._held[start + end :]
        return self._parse(text, rest)

    def _parse(self, text: str, rest: str) -> str:
        value = read_object(text) or {}
        name, arguments = value.get("name"), value.get(self._key)
        if (
            not isinstance(name, str)
            or name not in self._functions
            or not isinstance(arguments, dict)
        ):
            self.state = "broken"
            return ""
        self.name, self.rest, self.state = name, rest, "done"
        head = self._head.match(text)
        if head is None:  # in another order
            return json.dumps(arguments, ensure_ascii=False)
        behind = text[head.end() :]
        return behind[: ObjectEnd().read(behind)]

    def _read_behind_head(self) -> str:
        if self._num_sent is None and not self._read_head():
            return ""
        assert self._num_sent is not None
        end = self._end.read(self._held)
        if not self._is_certain:
            return self._take_whole(end)
        fragment = self._held[self._num_sent : end]
        self._num_sent += len(fragment)
        if end is not None:
            self._end_behind(self._held[end:])
        return fragment

    def _read_head(self) -> bool:
        head = self._head.match(self._held)
        if head is None:
            if not self._begun.fullmatch(self._held):
                self.state = "broken"
            return False
        name = _unescape(head[1]) if self._is_object else head[1]
        if name not in self._functions:
            self.state = "broken"
            return False
        self.name = name
        self._held, self._num_sent = self._held[head.end() :], 0
        return True

    def _take_whole(self, end: int | None) -> str:
        if end is None:
            return ""
        text = self._held[:end]
        if read_object(text) is None:
            self.state = "broken"
            return ""
        self.rest, self.state = self._held[end:], "done"
        return text

    def _end_behind(self, rest: str) -> None:
        """The arguments have ended; an object with them ends with one more brace."""
        if not self._is_object:
            self.rest, self.state = rest, "done"
        elif rest := rest.lstrip():
            self.rest, self.state = rest.removeprefix("}"), "done"


def _heads(form: ToolFormat) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What stands before the arguments, with the name in it; and what can still become that."""
    if form.spelling == "object":
        name = r'"name"\s*:\s*"((?:[^"\\]|\\.)*)"'
        return re.compile(rf'\s*\{{\s*{name}\s*,\s*"{form.arguments}"\s*:\s*(?=\{{)'), re.compile(
            r"\s*(?:\{(?s:.*))?"
        )
    # Some templates number the calls between the name and the arguments.
    head = re.compile(rf"\s*([\w-]+)(?:\[CALL_ID\]\w*)?{re.escape(form.after_name)}\s*(?=\{{)")
    begun = re.compile(r"\s*[\w-]*(?:\[[A-Z_]*(?:\]\w*(?:\[[A-Z]*\]?)?)?)?\s*")
    return head, begun


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, None where it is none or says something twice."""
    try:
        value = read_value(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _unescape(name: str) -> str | None:
    try:
        found = json.loads(f'"{name}"')
    except ValueError:
        return None
    return str(found)
