"""Calls as models of each family write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from diffusiongpt.engine.tool_formats import (
    GLM,
    GLM_COMPACT,
    MISTRAL,
    MISTRAL_LIST,
    QWEN_CODER,
    ToolFormat,
)
from diffusiongpt.server.argument_values import spell

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "warm": {"type": "boolean"},
            "at": {"type": "array", "items": {"type": "number"}},
            "unit": {"enum": ["C", "F", 1, None]},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["city"],
    },
    "clock": {"type": "object", "properties": {}},
}
VALUES: dict[str, Any] = {
    "city": 'Bonn "am" Rhein\n<b> 🎈',
    "days": 3,
    "warm": False,
    "at": [1.5, -2],
    "unit": None,
    "note": "5",
}


def write(form: ToolFormat, *calls: tuple[str, Mapping[str, Any]]) -> str:
    """Calls as a model of the family writes them."""
    bodies = [
        form.before_name + name + form.after_name + write_arguments(form, arguments) + form.end
        for name, arguments in calls
    ]
    if form.separator is not None:
        bodies = [form.separator.join(bodies)]
    groups = [form.opening + form.lead + body + form.trail + form.closing for body in bodies]
    return form.between.join(groups)


def write_arguments(form: ToolFormat, arguments: Mapping[str, Any]) -> str:
    tags = form.tags
    if tags is None:
        return json.dumps(arguments, ensure_ascii=False)
    space = tags.newline if tags.value_opening else ""
    return "".join(
        f"{tags.key_opening}{key}{tags.key_closing}{space}{tags.value_opening}{tags.padding}"
        f"{spell(value)}{tags.padding}{tags.value_closing}{tags.newline}"
        for key, value in arguments.items()
    )


WRITTEN = {
    GLM: (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>clock\n</tool_call>"
    ),
    GLM_COMPACT: (
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Bonn</arg_value>"
        "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call><tool_call>clock</tool_call>"
    ),
    QWEN_CODER: (
        "<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=clock>\n</function>\n</tool_call>"
    ),
    MISTRAL_LIST: (
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bonn", "days": 3}}, '
        '{"name": "clock", "arguments": {}}]'
    ),
    MISTRAL: '[TOOL_CALLS]weather[ARGS]{"city": "Bonn", "days": 3}[TOOL_CALLS]clock[ARGS]{}',
}
