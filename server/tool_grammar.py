"""The language of calls: what a model may write when it must call a tool, or does so strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from diffusiongpt.engine.chat import ToolFormat
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.server.tools import FunctionDefinition

# One spelling of each value, so that no white space can go on for ever.
_SPELLING = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
# Where several schemas may speak of one object, none of them knows all its properties.
_COMBINING = (
    *("allOf", "oneOf", "if", "not", "dependentSchemas"),
    *("patternProperties", "unevaluatedProperties"),
)
_NAMED, _LISTED = ("properties", "$defs", "definitions"), ("anyOf", "prefixItems")


def forced_calls(
    functions: Sequence[FunctionDefinition],
    form: ToolFormat,
    *,
    several: bool,
    lead: str = "",
) -> Constraint:
    """The language of calls and nothing else, their arguments valid.

    Args:
        functions: that may be called. form: how a call is written.
        several: one call or more, where the form has several; else exactly one.
        lead: what is written before the first call.
    """
    start = json.dumps(lead) + " call" if lead else "call"
    if several and form.opening:
        start += ' ("\\n" call)*'
    rules = [f"start: {start}", *_call_rules(functions, form, only_strict=False)]
    return Constraint(kind="grammar", source="\n".join(rules) + "\n")


def strict_calls(
    functions: Sequence[FunctionDefinition], form: ToolFormat, *, several: bool
) -> Constraint:
    """The language of any text whose calls are valid: strictly those of strict functions, of the
    others any object as arguments."""
    if form.opening:
        # `lazy` ends the text at the first mark, from where on only a call can follow.
        mark = re.escape(form.opening).replace("/", r"\/")
        start = "(text call_after_mark)* rest" if several else "text call_after_mark | rest"
        rules = [f"start: {start}", f"text[lazy]: /(.|\\n)*{mark}/"]
    else:
        rules = ["start: call | rest_without_brace"]
        rules.append(r"rest_without_brace: /[ \t\r\n]*([^{ \t\r\n](.|\n)*)?/")
    rules += [r"rest: /(.|\n)*/"] if form.opening else []
    rules += _call_rules(functions, form, only_strict=True, after_mark=bool(form.opening))
    return Constraint(kind="grammar", source="\n".join(rules) + "\n")


def calls_or_answer(
    functions: Sequence[FunctionDefinition], form: ToolFormat, answer: Constraint, *, several: bool
) -> Constraint:
    """The language of valid calls, and of JSON that `answer` (a schema, or any object) allows.

    The form must have marks: a matcher cannot tell a bare call from other JSON as it begins.
    """
    start = 'call ("\\n" call)*' if several else "call"
    schema = json.loads(answer.source) if answer.kind == "json_schema" else _ANY_OBJECT
    rules = [f"start: {start} | answer", f"answer: %json {_spell(schema)}"]
    rules += _call_rules(functions, form, only_strict=False)
    return Constraint(kind="grammar", source="\n".join(rules) + "\n")


def _call_rules(
    functions: Sequence[FunctionDefinition],
    form: ToolFormat,
    *,
    only_strict: bool,
    after_mark: bool = False,
) -> list[str]:
    indices = range(len(functions))
    body = " | ".join(f"function_{index}" for index in indices)
    opening = "" if after_mark else form.opening
    before = json.dumps(opening + "\n") + " " if form.opening else ""
    after = " " + json.dumps("\n" + form.closing) if form.opening else ""
    name = "call_after_mark" if after_mark else "call"
    rules = [f"{name}: {before}({body}){after}"]
    for index, function in zip(indices, functions, strict=True):
        head = f'{{"name": {json.dumps(function.name)}, "{form.arguments}": '
        rules.append(f'function_{index}: {json.dumps(head)} arguments_{index} "}}"')
        is_free = only_strict and not function.strict
        schema = _ANY_OBJECT if is_free else _closed(function.schema_of_arguments)
        rules.append(f"arguments_{index}: %json {_spell(schema)}")
    return rules


def _spell(schema: dict[str, Any] | bool) -> str:
    """A schema in a grammar; everything is allowed by true, nothing by false."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return json.dumps({**schema, "x-guidance": _SPELLING})


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without properties that nobody named, where it leaves open whether there may be
    some: a model that makes some up would write a valid call that means nothing."""
    text = json.dumps(schema)
    if any(f'"{word}": ' in text for word in _COMBINING):
        return schema
    closed: dict[str, Any] = _close(schema)
    return closed


def _close(schema: Any) -> Any:
    if not isinstance(schema, dict) or ("properties" in schema and {"anyOf", "$ref"} & {*schema}):
        return schema
    closed = dict(schema)
    for word in _NAMED:
        if word in schema:
            closed[word] = {name: _close(each) for name, each in schema[word].items()}
    for word in _LISTED:
        if word in schema:
            closed[word] = [_close(each) for each in schema[word]]
    if "items" in schema:
        closed["items"] = _close(schema["items"])
    if "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed
