"""Splits calls of tools from an answer's text."""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Callable

from diffusiongpt.engine.tool_formats import ToolFormat
from diffusiongpt.server.call_bodies import Body, Functions, NamedBody, ObjectBody
from diffusiongpt.server.parts import CallArguments, CallBegin, Content, Part, num_certain
from diffusiongpt.server.tagged_body import TaggedBody

_BODIES: dict[str, type[ObjectBody] | type[NamedBody] | type[TaggedBody]] = {
    "object": ObjectBody,
    "named": NamedBody,
    "tagged": TaggedBody,
}


def new_call_id(length: int | None = None) -> str:
    """An id as OpenAI's are, or of `length` letters and digits; random, because it must not come
    twice in a chat."""
    if length is None:
        return f"call_{uuid.uuid4().hex[:24]}"
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


class CallSplitter:
    """Reads calls of known tools in the form of a family, the rest as content.

    A call that is not one (not in the form, no known tool, cut off before its end) is content,
    marks included. White space around a call belongs to nobody.

    Args:
        form: how the family writes a call.
        functions: on offer, by name: the JSON schema of their arguments.
        is_certain: the engine lets the model write nothing but valid calls, so that arguments
            can go out as they settle; otherwise they wait until the call is complete.
        make_id: of a call.
    """

    def __init__(
        self,
        form: ToolFormat,
        functions: Functions,
        *,
        is_certain: bool = False,
        make_id: Callable[[], str] | None = None,
    ) -> None:
        self._form = form
        self._functions = functions
        self._is_certain = is_certain
        self._make_id = make_id or (lambda: new_call_id(form.id_length))
        self._step: Callable[[bool], list[Part]] = self._outside if form.opening else self._whole
        self._held = ""
        self._num_calls = 0
        self._is_after_call = False
        self._is_closed = False
        self._begin_call("")

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain by now."""
        self._held += text
        return self._read_on(is_last=False)

    def finish(self) -> list[Part]:
        """The rest."""
        return self._read_on(is_last=True)

    def close(self) -> None:
        """The text ends where the closing mark of a call would come next."""
        self._is_closed = True

    def _read_on(self, *, is_last: bool) -> list[Part]:
        """Take steps until one stays where it is; a text may have a thousand marks."""
        parts: list[Part] = []
        while True:
            step = self._step
            parts += step(is_last)
            if self._step == step:
                return parts

    # Each step gives what is certain, and says by `_step` which one comes next.

    def _begin_call(self, lead: str) -> None:
        self._lead = lead  # what announced the call, if it was none
        self._body: Body = _BODIES[self._form.spelling](
            self._form, self._functions, is_certain=self._is_certain
        )
        self._read = ""  # what the body was given
        self._arguments = ""  # that have not gone out
        self._has_begun = False  # the call has gone out

    def _outside(self, is_last: bool) -> list[Part]:
        """Content, up to an opening mark."""
        self._strip_behind_call()
        before, found, rest = self._held.partition(self._form.opening)
        if not found:
            length = len(before) if is_last else num_certain(before, self._form.opening)
            self._held = before[length:]
            return _content(before[:length])
        text = before.rstrip()
        self._begin_call(before[len(text) :] + found)
        self._held = rest
        self._step = self._inside if self._form.separator is None else self._before_list
        return _content(text)

    def _whole(self, is_last: bool) -> list[Part]:
        """The answer may be one call without marks, if it begins as one."""
        begun = self._held.lstrip()
        if not begun and not is_last:
            return []
        self._step = self._inside if begun.startswith("{") else self._rest
        return []

    def _before_list(self, is_last: bool) -> list[Part]:
        """The bracket before calls that share their marks."""
        begun = self._held.lstrip()
        if not begun and not is_last:
            return []
        if not begun.startswith(self._form.lead):
            return self._give_up()
        self._lead += self._held[: len(self._held) - len(begun)] + self._form.lead
        self._held, self._step = begun[len(self._form.lead) :], self._inside
        return []

    def _inside(self, is_last: bool) -> list[Part]:
        """A call, from behind what announced it."""
        text, self._held = self._held, ""
        self._read += text
        self._arguments += self._body.feed(text)
        if is_last:
            self._arguments += self._body.finish(is_closed=self._is_closed)
        if self._body.state == "broken" and not self._has_begun:
            return self._give_up()
        parts = self._take() if self._is_certain or self._body.state == "done" else []
        if self._body.state == "done":
            self._held, self._step = self._body.rest, self._behind
        return parts

    def _take(self) -> list[Part]:
        """What is known of the call."""
        parts: list[Part] = []
        if not self._has_begun and self._body.name is not None:
            parts.append(CallBegin(self._num_calls, self._make_id(), self._body.name))
            self._has_begun = True
            self._num_calls += 1
        if self._arguments:
            parts.append(CallArguments(self._num_calls - 1, self._arguments))
            self._arguments = ""
        return parts

    def _behind(self, is_last: bool) -> list[Part]:
        """What follows a call: another one in the same marks, or the closing mark."""
        begun = self._held.lstrip()
        separator = (self._form.separator or "").strip()
        closing = self._form.closing or self._form.trail
        if separator and begun.startswith(separator):
            self._begin_call(separator)
            self._held, self._step = begun[len(separator) :], self._inside
            return []
        if closing and begun.startswith(closing):
            self._held = begun[len(closing) :]
        elif closing.startswith(begun) and not is_last:
            return []
        self._is_after_call = True
        self._step = self._outside if self._form.opening else self._rest
        return []

    def _strip_behind_call(self) -> None:
        if self._is_after_call:
            self._held = self._held.lstrip()
            self._is_after_call = not self._held

    def _rest(self, _is_last: bool) -> list[Part]:
        self._strip_behind_call()
        text, self._held = self._held, ""
        return _content(text)

    def _give_up(self) -> list[Part]:
        """It was no call."""
        lead, self._held = self._lead, self._read + self._held
        self._begin_call("")
        self._step = self._outside if self._form.opening else self._rest
        return _content(lead)


def _content(text: str) -> list[Part]:
    return [Content(text)] if text else []
