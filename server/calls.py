"""Splits calls of tools from an answer's text."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from diffusiongpt.engine.chat import ToolFormat
from diffusiongpt.server.parts import CallArguments, CallBegin, Content, Part, num_certain


def new_call_id() -> str:
    """An id as OpenAI's are; random, because it must not come twice in a chat."""
    return f"call_{uuid.uuid4().hex[:24]}"


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


class CallSplitter:
    """Reads calls of known tools in the form of a family, the rest as content.

    A call that is not one (no JSON object, no known tool, arguments that are no object, cut off
    before its end) is content, marks included. White space around a call belongs to nobody.

    Args:
        form: how the family writes a call. names: of the tools on offer.
        is_certain: the engine lets the model write nothing but valid calls, so that arguments
            can go out as they settle; otherwise they wait until the call is complete.
        make_id: of a call.
    """

    def __init__(
        self,
        form: ToolFormat,
        names: Collection[str],
        *,
        is_certain: bool = False,
        make_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._form = form
        self._names = names
        self._is_certain = is_certain
        self._make_id = make_id
        self._head = re.compile(
            rf'\s*\{{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"{form.arguments}"\s*:\s*(?=\{{)'
        )
        self._step: Callable[[bool], list[Part]] = self._outside if form.opening else self._whole
        self._held = ""
        self._num_calls = 0
        self._is_after_call = False
        self._begin_call()

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain by now."""
        self._held += text
        return self._step(False)

    def finish(self) -> list[Part]:
        """The rest."""
        return self._step(True)

    def _begin_call(self) -> None:
        self._lead = ""  # the opening mark and the white space around it, if it was none
        self._end = ObjectEnd()
        self._arguments_end = ObjectEnd()
        self._num_sent: int | None = None  # characters of `_held` that went out as arguments

    def _outside(self, is_last: bool) -> list[Part]:
        """Content, up to an opening mark."""
        if self._is_after_call:
            self._held = self._held.lstrip()
            self._is_after_call = not self._held
        before, found, rest = self._held.partition(self._form.opening)
        if not found:
            length = len(before) if is_last else num_certain(before, self._form.opening)
            self._held = before[length:]
            return _content(before[:length])
        text = before.rstrip()
        self._begin_call()
        self._lead = before[len(text) :] + found
        self._held, self._step = rest, self._inside
        return [*_content(text), *self._step(is_last)]

    def _whole(self, is_last: bool) -> list[Part]:
        """The answer may be one call without marks, if it begins as one."""
        begun = self._held.lstrip()
        if not begun and not is_last:
            return []
        self._step = self._inside if begun.startswith("{") else self._rest
        return self._step(is_last)

    def _inside(self, is_last: bool) -> list[Part]:
        """A call, from its opening mark on."""
        if not self._held.lstrip().startswith("{"):
            return self._give_up(is_last) if self._held.strip() or is_last else []
        if self._is_certain:
            return self._stream(is_last)
        start = len(self._held) - len(self._held.lstrip())
        end = self._end.read(self._held[start:])
        if end is None:
            return self._give_up(is_last) if is_last else []
        call = self._parse(self._held[start : start + end])
        if call is None:
            return self._give_up(is_last)
        self._held, self._step = self._held[start + end :], self._behind
        name, arguments = call
        index = self._count()
        begin = CallBegin(index, self._make_id(), name)
        return [begin, CallArguments(index, arguments), *self._step(is_last)]

    def _stream(self, is_last: bool) -> list[Part]:
        """A call whose arguments go out as they come."""
        parts: list[Part] = []
        if self._num_sent is None:
            head = self._head.match(self._held)
            name = _name_in(head)
            if head is None or name is None or name not in self._names:
                return self._give_up(is_last) if is_last or head else []
            parts.append(CallBegin(self._count(), self._make_id(), name))
            self._held, self._num_sent = self._held[head.end() :], 0
        end = self._arguments_end.read(self._held)
        if fragment := self._held[self._num_sent : end]:
            self._num_sent += len(fragment)
            parts.append(CallArguments(self._num_calls - 1, fragment))
        if end is not None and (rest := self._held[end:].lstrip()):
            self._held, self._step = rest.removeprefix("}"), self._behind
            parts += self._step(is_last)
        return parts

    def _behind(self, is_last: bool) -> list[Part]:
        """The closing mark after a call."""
        begun = self._held.lstrip()
        closing = self._form.closing
        if begun.startswith(closing) and closing:
            self._held = begun[len(closing) :]
        elif closing.startswith(begun) and not is_last:
            return []
        self._is_after_call = True
        self._step = self._outside if self._form.opening else self._after_whole
        return self._step(is_last)

    def _after_whole(self, is_last: bool) -> list[Part]:
        if self._is_after_call:
            self._held = self._held.lstrip()
            self._is_after_call = not self._held
        return self._rest(is_last)

    def _rest(self, _is_last: bool) -> list[Part]:
        text, self._held = self._held, ""
        return _content(text)

    def _give_up(self, is_last: bool) -> list[Part]:
        """It was no call."""
        lead, self._lead = self._lead, ""
        self._step = self._outside if self._form.opening else self._rest
        return [*_content(lead), *self._step(is_last)]

    def _count(self) -> int:
        self._num_calls += 1
        return self._num_calls - 1

    def _parse(self, text: str) -> tuple[str, str] | None:
        """Name and arguments of a call that a known tool understands."""
        try:
            value: Any = json.loads(
                text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twins
            )
        except (ValueError, RecursionError):
            return None
        name, arguments = value.get("name"), value.get(self._form.arguments)
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        head = self._head.match(text)
        if head is None:  # in another order
            return name, json.dumps(arguments, ensure_ascii=False)
        rest = text[head.end() :]
        return name, rest[: ObjectEnd().read(rest)]


def _name_in(head: re.Match[str] | None) -> str | None:
    try:
        name = json.loads(f'"{head[1]}"') if head else None
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object gives a name twice")
    return value


def _content(text: str) -> list[Part]:
    return [Content(text)] if text else []
