"""The language of a call's arguments: a JSON object, or values between tags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.tool_formats import ArgumentTags, ToolFormat
from diffusiongpt.server.argument_values import (
    NOTES,
    TEXT,
    Schema,
    resolve,
    spell,
    type_of,
    types_of,
    values_of,
)

ANY_OBJECT: dict[str, Any] = {"type": "object"}
# One spelling of each value, so that no white space can go on for ever.
_SPELLING = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
# Which type a value has is known apart.
_NOTES = NOTES | {"type"}
# What tagged arguments can keep of their object's schema.
_KEPT_OF_OBJECTS = _NOTES | {"properties", "required", "additionalProperties"}
_KEPT_OF_TEXT = _NOTES | {"minLength", "maxLength", "pattern"}
_PLACES = ("$defs", "definitions")
_LISTS = {"array", "object"}
_LONGEST_PATTERN = 4096
_SCALARS = {
    "null": "null",
    "boolean": "true|false",
    "integer": "-?(0|[1-9][0-9]*)",
    "number": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
}


def spell_schema(schema: Schema) -> str:
    """A schema in a grammar; everything is allowed by true, nothing by false."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return json.dumps({**schema, "x-guidance": _SPELLING})


def literal(text: str) -> str:
    """A text in a grammar, nothing for no text."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def argument_rules(
    index: int, function: str, schema: Mapping[str, Any] | None, form: ToolFormat
) -> list[str]:
    """The rule `arguments_{index}` and those that it needs.

    Args:
        function: its name, for sentences. schema: of the arguments, None for any.

    Raises:
        InvalidRequest: tags cannot keep the schema.
    """
    if form.tags is None:
        return [
            f"arguments_{index}: %json {spell_schema(ANY_OBJECT if schema is None else schema)}"
        ]
    return list(_TaggedRules(index, function, form.tags).rules(schema))


class _TaggedRules:
    """Writes the rules of one function's tagged arguments."""

    def __init__(self, index: int, function: str, tags: ArgumentTags) -> None:
        self._index = index
        self._function = function
        self._tags = tags
        self._root: Mapping[str, Any] = {}

    def rules(self, schema: Mapping[str, Any] | None) -> Iterator[str]:
        """All of them."""
        self._root = {"additionalProperties": True} if schema is None else schema
        self._refuse_words(self._root, _KEPT_OF_OBJECTS, "parameters")
        more = self._root.get("additionalProperties", True)
        properties = dict(self._root.get("properties", {}))
        required = self._root.get("required", [])
        properties |= {name: more for name in required if name not in properties}
        parts = []
        for number, (name, each) in enumerate(properties.items()):
            rule = f"argument_{self._index}_{number}"
            parts.append(rule if name in required else f"{rule}?")
            yield f"{rule}: {self._begin(name)} value_{self._index}_{number}{self._newline}"
            yield from self._value(number, name, each)
        # A schema that says nothing of other arguments has none: see `_closed`.
        if "additionalProperties" in self._root and more is not False:
            parts.append(f"more_{self._index}*")
            yield from self._more(more, properties)
        yield f"arguments_{self._index}: " + (" ".join(parts) or '""')

    @property
    def _newline(self) -> str:
        return f" {literal(self._tags.newline)}" if self._tags.newline else ""

    @property
    def _middle(self) -> str:
        """Between a key and its value."""
        tags = self._tags
        space = tags.newline if tags.value_opening else ""
        return tags.key_closing + space + tags.value_opening + tags.padding

    def _begin(self, name: str) -> str:
        if not name or "\n" in name or self._tags.key_closing in name:
            raise self._refusal(
                f"names without {self._tags.key_closing!r} and line breaks", f"{name!r}"
            )
        return literal(self._tags.key_opening + name + self._middle)

    def _more(self, schema: Schema, known: Mapping[str, Any]) -> Iterator[str]:
        """Arguments that nobody named."""
        number, rule = len(known), f"more_{self._index}"
        key = f"KEY_{self._index}"
        first = re.escape(self._tags.key_closing[0])
        names = "|".join(_regex(name) for name in known)
        excluded = f" & ~/({names}){_regex(self._middle)}/" if names else ""
        yield f"{key}: /[^{first}\\n]+{_regex(self._middle)}/{excluded}"
        opening = literal(self._tags.key_opening)
        yield f"{rule}: {opening} {key} value_{self._index}_{number}{self._newline}"
        yield from self._value(number, "another one", schema)

    def _value(self, number: int, name: str, schema: Schema) -> Iterator[str]:
        """The rule of one value, its closing tag included."""
        rule = f"value_{self._index}_{number}"
        schema = resolve(schema, self._root)
        if isinstance(schema, Mapping) and (listed := values_of(schema)) is not None:
            yield f"{rule}: {self._one_of(name, schema, listed)}"
            return
        types = types_of(schema, self._root)
        if "string" not in types:
            yield f"{rule}: {self._json(name, schema)}"
            return
        terminal = f"TEXT_{self._index}_{number}"
        branches = [resolve(each, self._root) for each in _branches(schema)]
        structured = [each for each in branches if types_of(each, self._root) <= _LISTS]
        alternatives = [terminal, *(self._json(name, each) for each in structured)]
        yield f"{rule}: {' | '.join(alternatives)}"
        plain = [each for each in branches if each not in structured]
        expressions = [self._expression(name, each) for each in plain]
        yield f"{terminal}: {self._terminal(expressions, has_json=bool(structured))}"

    @property
    def _end(self) -> str:
        return self._tags.padding + self._tags.value_closing

    def _json(self, name: str, schema: Schema) -> str:
        if isinstance(schema, Mapping):
            schema = {word: self._root[word] for word in _PLACES if word in self._root} | {**schema}
            # The value's schema is a root of its own, in which other references lead nowhere.
            for reference in re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema)):
                if not reference.startswith(tuple(f"#/{place}/" for place in _PLACES)):
                    raise self._refusal(f"references into $defs of {name}", repr(reference))
        return f"%json {spell_schema(schema)} {literal(self._end)}"

    def _one_of(self, name: str, schema: Mapping[str, Any], listed: Sequence[Any]) -> str:
        self._refuse_words(schema, _NOTES | {"enum", "const"}, name)
        types = types_of({"type": schema["type"]} if "type" in schema else True, self._root)
        words = [spell(value) for value in listed if type_of(value) in types]
        if wrong := [word for word in words if self._tags.value_closing in word]:
            raise self._refusal(f"values without {self._tags.value_closing!r}", repr(wrong[0]))
        if not words:
            raise self._refusal(f"a value that {name} may have", repr([*listed]))
        return " | ".join(literal(word + self._end) for word in words)

    def _expression(self, name: str, schema: Schema) -> str:
        """What text, and numbers and the like beside text, must match."""
        types = types_of(schema, self._root)
        words = frozenset() if isinstance(schema, bool) else schema.keys()
        if types == TEXT and isinstance(schema, Mapping):
            self._refuse_words(schema, _KEPT_OF_TEXT, name)
            return _text_expression(schema)
        if limits := sorted(words & _SCHEMA_WORDS):
            raise self._refusal(f"no limits of what else than text {name} may be", repr(limits[0]))
        if "string" in types:
            return "(?s:.*)"
        if lists := sorted(types & _LISTS):
            raise self._refusal(f"cases of one type each in {name}", repr(lists[0]))
        return "|".join(_SCALARS[each] for each in sorted(types))

    def _terminal(self, expressions: Sequence[str], *, has_json: bool) -> str:
        closing = _regex(self._tags.value_closing)
        text = "|".join(f"({each})" for each in dict.fromkeys(expressions))
        # The first closing tag ends a value, whatever else it may be part of.
        found = f"/({text}){_regex(self._end)}/ & ~/(?s:.*){closing}(?s:.+)/"
        return found + (r" & ~/[ \t\r\n]*[\[{](?s:.*)/" if has_json else "")

    def _refuse_words(self, schema: Mapping[str, Any], kept: Set[str], name: str) -> None:
        if wrong := sorted(schema.keys() & _SCHEMA_WORDS - kept):
            accepted = ", ".join(sorted(kept - _NOTES)) or "nothing"
            raise self._refusal(f"{accepted} of {name}", repr(wrong[0]))

    def _refusal(self, accepted: str, got: str) -> InvalidRequest:
        return InvalidRequest(
            f"arguments of {self._function} stand between tags where this model writes them, "
            f"which keeps {accepted}, got {got}",
            "constraint",
        )


# Those that change what a value may be; words that the standard does not know are left alone.
_SCHEMA_WORDS = {
    *("anyOf", "oneOf", "allOf", "not", "if", "then", "else", "$ref", "enum", "const"),
    *("properties", "patternProperties", "propertyNames", "required", "additionalProperties"),
    *("minProperties", "maxProperties", "dependentRequired", "dependentSchemas"),
    *("unevaluatedProperties", "minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
}


def _branches(schema: Schema) -> Sequence[Schema]:
    """The cases of a schema that is nothing but cases, else itself."""
    if isinstance(schema, Mapping):
        for word in ("anyOf", "oneOf"):
            if word in schema and not schema.keys() - _NOTES - {word} and "type" not in schema:
                found: Sequence[Schema] = schema[word]
                return found
    return [schema]


def _text_expression(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    found = f"(?s:.){{{int(least)},{'' if most is None else int(most)}}}"
    if "pattern" not in schema:
        return found
    if {"minLength", "maxLength"} & schema.keys():
        raise InvalidRequest(
            "a text between tags keeps a pattern or lengths, got both", "constraint"
        )
    if len(schema["pattern"]) > _LONGEST_PATTERN:
        raise InvalidRequest(
            f"a pattern of a text between tags has at most {_LONGEST_PATTERN} characters, "
            f"got {len(schema['pattern'])}",
            "constraint",
        )
    return _whole_text(schema["pattern"])


def _whole_text(pattern: str) -> str:
    """The expression of texts in which a pattern is found."""
    begin, end = "(?s:.*)", "(?s:.*)"
    if not _has_alternatives(pattern):
        if pattern.startswith("^"):
            begin, pattern = "", pattern[1:]
        if re.search(r"(?<!\\)(?:\\\\)*\$$", pattern):
            end, pattern = "", pattern[:-1]
    slashed = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\/", pattern).replace("\n", r"\n")
    return f"{begin}({slashed}){end}"


def _has_alternatives(pattern: str) -> bool:
    """Whether a bar stands outside of all brackets."""
    depth = 0
    for part in re.findall(r"\\.|\[(?:\\.|[^\]\\])*\]|[()|]", pattern):
        depth += {"(": 1, ")": -1}.get(part, 0)
        if part == "|" and depth == 0:
            return True
    return False


def _regex(text: str) -> str:
    """The expression of exactly this text."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")
