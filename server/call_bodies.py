"""Reads one call of a tool, from behind its opening mark on, as its text comes.

There is a reader for each spelling that formats know: an object with the name in it, a name with
an object (both here), and a name with tagged arguments (`tagged_body.py`). Each takes

    form: how the family writes a call.
    functions: on offer, by name.
    is_certain: the call is valid, so that arguments can go out as they come; otherwise they wait
        until it is complete.
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
    """Finds where a JSON object ends in a text that grows, each character looked at once.

    Attributes:
        position: of the character behind the end, once it is known.
        is_broken: something that is no JSON stands outside of strings.
    """

    _STRING = re.compile(r'(?:[^"\\]|\\.)*+', re.DOTALL)
    _PLAIN = re.compile(r"[\s0-9A-Za-z:,.+-]*")

    def __init__(self) -> None:
        self.position: int | None = None
        self.is_broken = False
        self._num_read = 0
        self._depth = 0
        self._in_string = False

    def read(self, text: str) -> int | None:
        """`position`, once it is known; `text` is the object's beginning so far."""
        while self.position is None and not self.is_broken:
            run = self._STRING if self._in_string else self._PLAIN
            match = run.match(text, self._num_read)
            assert match is not None
            self._num_read = match.end()
            # A backslash at the text's end waits for what it escapes.
            if self._num_read == len(text) or (text[self._num_read] == "\\" and self._in_string):
                break
            self._look_at(text[self._num_read])
            self._num_read += 1
            if self._depth == 0:
                self.position = self._num_read
        return self.position

    def _look_at(self, character: str) -> None:
        if character == '"':
            self._in_string = not self._in_string
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        else:
            self.is_broken = True


class Arguments:
    """Reads the object of a call's arguments as its text comes.

    Args:
        is_certain: the object is valid, so that it can go out as it comes; otherwise it waits
            until it is complete.
    """

    def __init__(self, *, is_certain: bool) -> None:
        self.state: State = "open"
        self.rest = ""
        self._is_certain = is_certain
        self._held = ""
        self._num_sent = 0
        self._end = ObjectEnd()

    def feed(self, text: str) -> str:
        """More of the text; gives what can go out."""
        self._held += text
        end = self._end.read(self._held)
        if end is not None:
            self.rest, self.state = self._held[end:], "done"
        if not self._is_certain:
            return self._take_whole(end)
        fragment = self._held[self._num_sent : end]
        self._num_sent += len(fragment)
        return fragment

    def _take_whole(self, end: int | None) -> str:
        if self._end.is_broken or (end is not None and read_object(self._held[:end]) is None):
            self.state = "broken"
        return self._held[:end] if self.state == "done" else ""


class NamedBody:
    """Reads a call that is a name and an object with the arguments."""

    # What can still become a mark or two between the name and the arguments.
    _BEGUN = re.compile(r"(?:\[[A-Z_]{0,8}(?:\]\w{0,64}(?:\[[A-Z]{0,8}\]?)?)?)?\s{0,64}")

    def __init__(self, form: ToolFormat, functions: Functions, *, is_certain: bool) -> None:
        self.state: State = "open"
        self.name: str | None = None
        self.rest = ""
        self._functions = functions
        self._arguments = Arguments(is_certain=is_certain)
        self._held = ""  # until the name is known
        # Some templates number the calls between the name and the arguments.
        marks = rf"(?:\[CALL_ID\]\w{{0,64}})?{re.escape(form.after_name)}\s{{0,64}}"
        self._head = re.compile(rf"([\w-]+){marks}(?=\{{)")

    def feed(self, text: str) -> str:
        """More of the text; gives what it adds to the arguments."""
        if self.name is None:
            self._held = (self._held + text).lstrip()
            if not self._read_head():
                return ""
            text = self._held
        fragment = self._arguments.feed(text)
        self.state, self.rest = self._arguments.state, self._arguments.rest
        return fragment

    def finish(self, *, is_closed: bool) -> str:
        """A call that has not ended is none."""
        del is_closed
        if self.state == "open":
            self.state = "broken"
        return ""

    def _read_head(self) -> bool:
        begun = begun_name(self._held, self._functions)
        head = self._head.match(self._held)
        if begun is None or (head is None and not self._BEGUN.fullmatch(self._held, len(begun))):
            self.state = "broken"
        if self.state == "broken" or head is None:
            return False
        self.name, self._held = head[1], self._held[head.end() :]
        return True


class ObjectBody:
    """Reads a call that is an object with the name and the arguments in it."""

    def __init__(self, form: ToolFormat, functions: Functions, *, is_certain: bool) -> None:
        self.state: State = "open"
        self.name: str | None = None
        self.rest = ""
        self._functions = functions
        self._key = form.arguments
        # A valid call goes out as it comes, any other one waits until it is complete.
        self._arguments = Arguments(is_certain=True) if is_certain else None
        self._held = ""
        self._end = ObjectEnd()
        name = r'"name"\s*:\s*"((?:[^"\\]|\\.)*)"'
        self._head = re.compile(rf'\s*\{{\s*{name}\s*,\s*"{form.arguments}"\s*:\s*(?=\{{)')

    def feed(self, text: str) -> str:
        """More of the text; gives what it adds to the arguments."""
        if self._arguments is None:
            return self._read_whole(text)
        return self._read_certain(text, self._arguments)

    def finish(self, *, is_closed: bool) -> str:
        """A call that has not ended is none."""
        del is_closed
        if self.state == "open":
            self.state = "broken"
        return ""

    def _read_certain(self, text: str, arguments: Arguments) -> str:
        if self.name is None:
            self._held += text
            head = self._head.match(self._held)
            if head is None:
                return ""
            name, text = _unescape(head[1]), self._held[head.end() :]
            if name not in self._functions:
                self.state = "broken"
                return ""
            self.name = name
        fragment = arguments.feed(text)
        # One more brace ends the object around the arguments.
        if arguments.state == "done" and (rest := arguments.rest.lstrip()):
            self.rest, self.state = rest.removeprefix("}"), "done"
        return fragment

    def _read_whole(self, text: str) -> str:
        """An object with the name and the arguments in any order."""
        self._held = (self._held + text).lstrip()
        if not self._held:
            return ""
        end = self._end.read(self._held) if self._held[0] == "{" else None
        if end is not None:
            return self._parse(self._held[:end], self._held[end:])
        if self._held[0] != "{" or self._end.is_broken:
            self.state = "broken"
        return ""

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
        if head is None:  # In another order. What was escaped may be half of a surrogate pair.
            return json.dumps(arguments, ensure_ascii="\\u" in text)
        behind = text[head.end() :]
        return behind[: ObjectEnd().read(behind)]


def begun_name(text: str, functions: Functions) -> str | None:
    """The name that a text begins with, None if no function's begins so: most of what is no call
    is known by then."""
    match = re.match(r"[\w-]*", text)
    assert match is not None
    name = match[0]
    is_whole = len(name) < len(text)
    if name in functions if is_whole else any(each.startswith(name) for each in functions):
        return name
    return None


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
