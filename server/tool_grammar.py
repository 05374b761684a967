"""The language of calls: what a model may write when it must call a tool, or does so strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.tool_formats import ToolFormat
from diffusiongpt.server.argument_grammar import ANY_OBJECT, argument_rules, literal, spell_schema
from diffusiongpt.server.schemas import schemas_in
from diffusiongpt.server.tools import FunctionDefinition

# Where several schemas may speak of one object, none of them knows all its properties.
_COMBINING = {
    *("allOf", "oneOf", "if", "not", "dependentSchemas"),
    *("patternProperties", "unevaluatedProperties"),
}
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
    start = f"{literal(lead)} " if lead else ""
    rules = [f"start: {start}{_calls(form, several=several)}"]
    rules += _call_rules(functions, form, several=several, only_strict=False)
    return Constraint(kind="grammar", source="\n".join(rules) + "\n")


def strict_calls(
    functions: Sequence[FunctionDefinition], form: ToolFormat, *, several: bool
) -> Constraint:
    """The language of any text whose calls are valid: strictly those of strict functions, of the
    others any object as arguments."""
    if form.opening:
        # `lazy` ends the text at the first mark, from where on only a call can follow.
        mark = re.escape(form.opening).replace("/", r"\/")
        start = "(text calls)* rest" if several else "text calls | rest"
        rules = [f"start: {start}", f"text[lazy]: /(.|\\n)*{mark}/"]
    else:
        rules = ["start: calls | rest_without_brace"]
        rules.append(r"rest_without_brace: /[ \t\r\n]*([^{ \t\r\n](.|\n)*)?/")
    rules += [r"rest: /(.|\n)*/"] if form.opening else []
    rules += _call_rules(
        functions, form, several=several, only_strict=True, after_mark=bool(form.opening)
    )
    return Constraint(kind="grammar", source="\n".join(rules) + "\n")


def calls_or_answer(
    functions: Sequence[FunctionDefinition], form: ToolFormat, answer: Constraint, *, several: bool
) -> Constraint:
    """The language of valid calls, and of JSON that `answer` (a schema, or any object) allows.

    The form must have marks: a matcher cannot tell a bare call from other JSON as it begins.
    """
    schema = json.loads(answer.source) if answer.kind == "json_schema" else ANY_OBJECT
    start = _calls(form, several=several)
    rules = [f"start: {start} | answer", f"answer: %json {spell_schema(schema)}"]
    rules += _call_rules(functions, form, several=several, only_strict=False)
    return Constraint(kind="grammar", source="\n".join(rules) + "\n")


def _calls(form: ToolFormat, *, several: bool) -> str:
    """One call or more, where the form has several and they have marks each."""
    if not several or not form.opening or form.separator is not None:
        return "calls"
    return f"calls ({literal(form.between)} calls)*" if form.between else "calls calls*"


def _call_rules(
    functions: Sequence[FunctionDefinition],
    form: ToolFormat,
    *,
    several: bool,
    only_strict: bool,
    after_mark: bool = False,
) -> list[str]:
    """`calls`: what stands between two marks, which is one call in most forms."""
    before = ("" if after_mark else form.opening) + form.lead
    listed = " | ".join(f"function_{index}" for index in range(len(functions)))
    body = f"({listed})"
    if several and form.separator is not None:
        body += f" ({literal(form.separator)} ({listed}))*"
    around = [literal(before), body, literal(form.trail + form.closing)]
    rules = ["calls: " + " ".join(each for each in around if each)]
    for index, function in enumerate(functions):
        head = form.before_name + function.name + form.after_name
        parts = [literal(head), f"arguments_{index}", literal(form.end)]
        rules.append(f"function_{index}: " + " ".join(each for each in parts if each))
        is_free = only_strict and not function.strict
        schema = None if is_free else _closed(function.schema_of_arguments)
        rules += argument_rules(index, function.name, schema, form)
    return rules


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without properties that nobody named, where it leaves open whether there may be
    some: a model that makes some up would write a valid call that means nothing."""
    if any(each.keys() & _COMBINING for each in schemas_in(schema)):
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
