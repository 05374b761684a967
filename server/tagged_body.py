"""Reads a call that has tags around each of its arguments, as GLM's and Qwen3-Coder's do."""

from __future__ import annotations

import json
from collections.abc import Callable

from diffusiongpt.engine.tool_formats import ToolFormat
from diffusiongpt.server.argument_values import TEXT, Schema, restore, schema_of, types_of
from diffusiongpt.server.call_bodies import Functions, State, begun_name


class TaggedBody:
    """Reads a call with tagged arguments.

    Strings go out as they come, other values when they are complete. White space between tags
    belongs to nobody.

    Args:
        is_certain: an argument that comes twice does not undo the call.
    """

    def __init__(self, form: ToolFormat, functions: Functions, *, is_certain: bool) -> None:
        assert form.tags is not None
        self.state: State = "open"
        self.name: str | None = None
        self.rest = ""
        self._form = form
        self._tags = form.tags
        # What may follow an argument: another one, or the call's end.
        self._marks = form.tags.key_opening, form.end or form.closing
        self._functions = functions
        self._is_certain = is_certain
        self._held = ""
        self._step: Callable[[], str | None] = self._read_name
        self._keys: list[str] = []
        self._schema: Schema = True
        self._is_string = False
        self._num_searched = 0  # characters of a value that hold no closing tag's beginning

    def feed(self, text: str) -> str:
        """More of the text; gives what it adds to the arguments."""
        self._held += text
        out = ""
        while self.state == "open":
            added = self._step()
            if added is None:
                break
            out += added
        return out

    def finish(self, *, is_closed: bool) -> str:
        """A call that has not ended is none, unless the closing mark did end it."""
        out = self.feed(self._form.closing) if is_closed and self.state == "open" else ""
        if self.state == "open":
            self.state = "broken"
        return out

    # Each step gives what it adds, or None where it needs more text.

    def _read_name(self) -> str | None:
        self._held = self._held.lstrip()
        opening = self._form.before_name
        if not self._held.startswith(opening):
            return None if opening.startswith(self._held) else self._break()
        name = begun_name(self._held[len(opening) :], self._functions)
        if name is None:
            return self._break()
        behind = self._held[len(opening) + len(name) :].lstrip()
        closing = self._form.after_name.strip()
        if not behind.startswith(closing):
            return None if closing.startswith(behind) else self._break()
        # The name is one where a tag or the end comes after it.
        behind = behind[len(closing) :].lstrip()
        if not behind.startswith(self._marks):
            return None if self._may_become_mark(behind) else self._break()
        self.name = name
        self._held, self._step = behind, self._read_tag
        return ""

    def _read_tag(self) -> str | None:
        """Another argument, or the call's end."""
        self._held = self._held.lstrip()
        if self._held.startswith(self._tags.key_opening):
            self._held = self._held[len(self._tags.key_opening) :]
            self._step = self._read_key
            return ""
        if self._held.startswith(self._marks):
            self.rest = self._held.removeprefix(self._form.end)
            self.state = "done"
            return "}" if self._keys else "{}"
        return None if self._may_become_mark(self._held) else self._break()

    def _may_become_mark(self, begun: str) -> bool:
        return any(mark.startswith(begun) for mark in self._marks)

    def _read_key(self) -> str | None:
        key, found, rest = self._held.partition(self._tags.key_closing)
        if not found:
            return None
        opening, rest = (
            self._tags.value_opening,
            rest.lstrip() if self._tags.value_opening else rest,
        )
        if not rest.startswith(opening):
            return None if opening.startswith(rest) else self._break()
        if key in self._keys and not self._is_certain:
            return self._break()
        if self._tags.padding and not rest:
            return None
        self._held = rest[len(opening) :].removeprefix(self._tags.padding)
        return self._begin_value(key)

    def _begin_value(self, key: str) -> str:
        parameters = self._functions[self.name or ""]
        self._schema = schema_of(key, parameters)
        self._is_string = types_of(self._schema, parameters) == TEXT
        self._step, self._num_searched = self._read_value, 0
        begin = ", " if self._keys else "{"
        self._keys.append(key)
        quote = '"' if self._is_string else ""
        return f"{begin}{json.dumps(key, ensure_ascii=False)}: {quote}"

    def _read_value(self) -> str | None:
        closing, padding = self._tags.value_closing, self._tags.padding
        end = self._held.find(closing, self._num_searched)
        if end < 0:
            self._num_searched = max(0, len(self._held) - len(closing))
            return self._read_string_part() if self._is_string else None
        text = self._held[:end]
        # Padding is not the value's, and a value that is read in parts has kept it back.
        text = text.removesuffix(padding) if padding else text
        self._held, self._step = self._held[end + len(closing) :], self._read_tag
        if self._is_string:
            return f'{_escape(text)}"'
        return restore(text, self._schema, self._functions[self.name or ""])

    def _read_string_part(self) -> str | None:
        """What no closing tag, and no padding before one, can take back."""
        mark = self._tags.padding + self._tags.value_closing
        marks = (mark, self._tags.value_closing)
        longest = min(len(self._held), len(mark) - 1)
        tails = (self._held[len(self._held) - n :] for n in range(longest, 0, -1))
        kept = next((len(tail) for tail in tails if any(m.startswith(tail) for m in marks)), 0)
        text, self._held = (
            self._held[: len(self._held) - kept],
            self._held[len(self._held) - kept :],
        )
        self._num_searched = 0
        return _escape(text) or None

    def _break(self) -> str | None:
        self.state = "broken"
        return None


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
