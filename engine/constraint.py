"""The language that a completion must be a word of. Values only: frozen, checked, torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from diffusiongpt.engine.errors import InvalidRequest

ConstraintKind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]
MAX_SOURCE_CHARACTERS = 262_144
MAX_CHOICES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A language: the completion's text is a word of it, or the request is refused.

    Attributes:
        kind: how `source` is to be read.
        source: the JSON text of a schema; nothing for `json_object`; a regular expression (of
            the whole text); a JSON list of texts, one of which is chosen; or a Lark grammar as
            llguidance reads it (with `%json {...}` and special tokens such as `<|im_end|>`).

    Raises:
        InvalidRequest: another kind, a source that is too long or not of its kind's form.
    """

    kind: ConstraintKind
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            accepted = ", ".join(get_args(ConstraintKind))
            raise _refusal(f"constraint.kind must be one of {accepted}, got {self.kind!r}")
        if not isinstance(self.source, str):
            raise _refusal(f"a {self.kind} must be text, got {type(self.source).__name__}")
        if len(self.source) > MAX_SOURCE_CHARACTERS:
            raise _refusal(
                f"a {self.kind} takes at most {MAX_SOURCE_CHARACTERS} characters, "
                f"got {len(self.source)}"
            )
        if not is_unicode(self.source):
            raise _refusal(f"a {self.kind} must be valid Unicode, got a lone surrogate")
        if self.kind == "json_object" and self.source:
            raise _refusal(f"json_object takes no source, got {self.source[:80]!r}")
        if self.kind in ("regex", "grammar") and not self.source:
            raise _refusal(f"a {self.kind} must have at least 1 character, got ''")
        if self.kind == "json_schema":
            self._check_schema()
        if self.kind == "choice":
            self._check_choices()

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts of a `choice`, in the order given."""
        return tuple(self._parsed())

    def _check_schema(self) -> None:
        schema = self._parsed()
        if not isinstance(schema, dict | bool):
            raise _refusal(
                f"a json_schema must be an object, true or false, got {self.source[:80]!r}"
            )

    def _check_choices(self) -> None:
        choices = self._parsed()
        if not isinstance(choices, list) or not 1 <= len(choices) <= MAX_CHOICES:
            raise _refusal(f"a choice must be a JSON list of 1 to {MAX_CHOICES} texts")
        for each in choices:
            if not isinstance(each, str) or not is_unicode(each):
                raise _refusal(f"each choice must be text in valid Unicode, got {each!r:.80}")

    def _parsed(self) -> Any:
        try:
            return json.loads(self.source)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise _refusal(f"a {self.kind} must be JSON that can be read: {reason}") from error


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(message, "constraint")
