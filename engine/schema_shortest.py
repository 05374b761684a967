"""The short texts of a JSON schema as parts of an automaton, whether it is regular or not.

What makes a text longer is left out: properties that may be missing, items that need not be, a
value within a value of the same definition, characters that a string need not have, repeats in
expressions. Of what is left no text is longer than it must be, so that its shortest is the
schema's, but for a token that a longer text may happen to spell. Texts that llguidance does not
accept may be among them, so what is found is tried. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffusiongpt.engine.characters import Ranges
from diffusiongpt.engine.expression import Expression
from diffusiongpt.engine.json_strings import format_of, pattern_of
from diffusiongpt.engine.schema import SchemaParts
from diffusiongpt.engine.schema_words import types_of

# Of many constants and cases those that are written shortest: most often of the shortest texts.
_FEW_VALUES, _FEW_CASES = 16, 64
_ANY_TYPE = ("null", "boolean", "integer", "string", "array", "object")
_LETTERS: Ranges = ((0x20, 0x20), (0x61, 0x7A))


class ShortestParts(SchemaParts):
    """Adds the short texts of schemas to the parts of an automaton."""

    def _add_recurring(self, reference: str) -> None:
        """Nothing: a text that holds a text of the same definition is longer than that one."""

    def _types(self, words: Mapping[str, Any]) -> Iterable[str]:
        return types_of(words) if "type" in words else _ANY_TYPE

    def _cases(self, cases: Sequence[Any]) -> Sequence[Any]:
        return sorted(cases, key=_length)[:_FEW_CASES] if len(cases) > _FEW_CASES else cases

    def _add_values(self, values: Sequence[Any], start: int, end: int) -> None:
        super()._add_values(sorted(values, key=_length)[:_FEW_VALUES], start, end)

    def _add_string(self, words: Mapping[str, Any], start: int, end: int) -> None:
        asked = {"pattern", "format", "minLength", "maxLength"} & words.keys()
        if len(asked) > 1 and not asked <= {"minLength", "maxLength"}:
            super()._add_string(words, start, end)
            return
        at = self._parts.after(b'"', start)
        for word, fragment_of in (("pattern", pattern_of), ("format", format_of)):
            if word in asked:
                at, before = self._parts.new(), at
                fragment_of(words[word], _LeastRepeats)(self._parts, before, at)
        for _ in range(int(words.get("minLength", 0))):
            at, before = self._parts.new(), at
            self._parts.add_characters(_LETTERS, before, at)
        if words.get("minLength", 0) <= words.get("maxLength", float("inf")):
            self._parts.add_text(b'"', at, end)

    def _add_array(self, words: Mapping[str, Any], start: int, end: int) -> None:
        super()._add_array({**words, "maxItems": words.get("minItems", 0)}, start, end)

    def _add_object(self, words: Mapping[str, Any], start: int, end: int) -> None:
        required = dict.fromkeys(words.get("required", []))
        properties = words.get("properties", {})
        others = words.get("additionalProperties", True)
        needed = {name: each for name, each in properties.items() if name in required}
        needed |= {name: others for name in required if name not in properties}
        closed = {**words, "properties": needed, "additionalProperties": False}
        closed.pop("patternProperties", None)
        super()._add_object(closed, start, end)


class _LeastRepeats(Expression):
    """Reads expressions as if everything stood in them as rarely as it may."""

    def add_any(self, start: int, end: int) -> None:
        self._parts.silent[start].append(end)

    def _add_repeat(self, least: int, most: Any, inner: Any, start: int, end: int) -> None:
        super()._add_repeat(least, least, inner, start, end)


def _length(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False))
