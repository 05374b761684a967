"""A schema's fixed text, written before anything is drawn, and room for each of its values.

The keys of objects that have all their properties, constants and the marks between are on the
canvas from the start, where a bidirectional model sees them on both sides of every value
(S3, arXiv 2507.04504); a value is a hole of its own, whose language is the value's schema. What a
value leaves of its room is filled with stop tokens, which have no text. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusiongpt.engine.automaton import Effort, NotRegular, TooLarge
from diffusiongpt.engine.canvas import MAX_HOLES, Canvas
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.json_values import spell
from diffusiongpt.engine.languages import Language
from diffusiongpt.engine.schema_words import resolve, values_of, words_of

_MAX_SCHEMAS = 2048  # each one writes something, so that larger texts have no automaton either
_DEFINITIONS = ("$defs", "definitions")


def pieces_of(source: str) -> list[str | Constraint]:
    """The fixed texts of a schema and the languages of its values, in the order of the text.

    Args:
        source: the JSON text of a schema that is a regular language.

    Raises:
        NotRegular, TooLarge: it is none after all.
        InvalidRequest: it has too many values.
    """
    root = json.loads(source)
    pieces = _Pieces(root)
    pieces.add(root)
    if not any(isinstance(each, Constraint) for each in pieces.made):
        # There is nothing to fill, and a canvas without a mask is none.
        return [Constraint(kind="json_schema", source=source)]
    return pieces.made


def values_of_scaffold(constraint: Constraint) -> list[Constraint]:
    """The languages that a scaffold of a constraint needs; none where it will be refused."""
    if constraint.kind != "json_schema":
        return []
    try:
        pieces = pieces_of(constraint.source)
    except (NotRegular, TooLarge, InvalidRequest, RecursionError):
        return []
    return list(dict.fromkeys(each for each in pieces if isinstance(each, Constraint)))


def place_scaffold(
    prompt: Sequence[int],
    language: Language,
    room: int,
    encode: Callable[[str], Sequence[int]],
    compile_one: Callable[[Constraint], Language],
) -> tuple[Canvas, list[Language]]:
    """A prompt's canvas with the scaffold of a schema, and the languages of its holes.

    Args:
        room: positions that a value gets at most, unless its shortest text takes more.

    Raises:
        InvalidRequest: the schema is not filled in any order, or has too many values.
    """
    if language.automaton is None:
        because = f", because {language.why_in_order}" if language.why_in_order else ""
        raise InvalidRequest(
            "a scaffold needs a json_schema that can be filled in any order, and this one is "
            f"written from left to right{because}",
            "scaffold",
        )
    region: list[int | None] = []
    languages = []
    for piece in pieces_of(language.constraint.source):
        if isinstance(piece, str):
            region += encode(piece)
            continue
        value = compile_one(piece)
        if value.automaton is None:
            raise InvalidRequest(f"a value's schema cannot be kept alone: {piece.source:.80}")
        longest = value.automaton.longest(room)
        region += [None] * max(longest, len(value.shortest))
        languages.append(value)
    return Canvas(prompt=tuple(prompt), region=tuple(region)), languages


class _Pieces:
    """Fixed texts and values, as they come. Nothing refers to itself in a regular schema."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._effort = Effort()
        self._num_schemas = self._num_values = 0
        self.made: list[str | Constraint] = []

    def add(self, schema: Any) -> None:
        """What a schema adds; raises NotRegular, InvalidRequest."""
        self._num_schemas += 1
        if self._num_schemas > _MAX_SCHEMAS:
            raise InvalidRequest("a scaffold of this schema is too large", "scaffold")
        resolved = resolve(schema, self._root, [], self._effort)
        if isinstance(resolved, bool):
            raise NotRegular
        words = words_of(resolved)
        values = values_of(words)
        if values is not None and len(values) == 1:
            self._write(spell(values[0]))
        elif words.get("type") == "null":
            self._write("null")
        elif values is None and _has_all_properties(words):
            properties = words.get("properties", {}).items()
            self._add_between("{}", [(f"{spell(name)}:", each) for name, each in properties])
        elif values is None and (items := _items_of(words)) is not None:
            self._add_between("[]", [("", each) for each in items])
        else:
            self._add_value(words)

    def _add_between(self, marks: str, parts: Sequence[tuple[str, Any]]) -> None:
        self._write(marks[0])
        for index, (key, schema) in enumerate(parts):
            self._write(f"{', ' if index else ''}{key}")
            self.add(schema)
        self._write(marks[1])

    def _write(self, text: str) -> None:
        if self.made and isinstance(self.made[-1], str):
            self.made[-1] += text
        else:
            self.made.append(text)

    def _add_value(self, words: Mapping[str, Any]) -> None:
        self._num_values += 1
        if self._num_values > MAX_HOLES:
            raise InvalidRequest(
                f"a scaffold has room for at most {MAX_HOLES} values, and this schema has more",
                "scaffold",
            )
        source = json.dumps(words)
        if '"$ref"' in source:
            places = {word: self._root[word] for word in _DEFINITIONS if word in self._root}
            source = json.dumps({**words, **places})
        self.made.append(Constraint(kind="json_schema", source=source))


def _has_all_properties(words: Mapping[str, Any]) -> bool:
    """Whether every such object has the same keys."""
    named, required = words.get("properties", {}), words.get("required", [])
    is_closed = words.get("additionalProperties") is False and "patternProperties" not in words
    is_alone = words.get("type") == "object" and not words.keys() & {"anyOf", "oneOf"}
    return is_alone and is_closed and {*named} == {*required}


def _items_of(words: Mapping[str, Any]) -> list[Any] | None:
    """The items of every such array, None if their number may vary."""
    if words.get("type") != "array" or words.keys() & {"anyOf", "oneOf"}:
        return None
    first, rest = list(words.get("prefixItems", [])), words.get("items", True)
    most = words.get("maxItems", len(first) if rest is False else None)
    least = int(words.get("minItems", 0))
    if most is None or least != (min(most, len(first)) if rest is False else most):
        return None
    return [*first[:least], *[rest] * (least - len(first))]
