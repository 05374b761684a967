"""The tools that a request offers, and how the model may use them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from diffusiongpt.server.schemas import check_schema
from diffusiongpt.server.wire import FieldError, Wire, show

MAX_TOOLS = 128
TOOL_NAME = "^[A-Za-z0-9_-]{1,64}$"
_CHOICES = ("none", "auto", "required")


class FunctionDefinition(Wire):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="JSON schema of the arguments; absent for a function without any"
    )
    strict: bool | None = Field(
        None, description="a call's arguments are valid, even where the call is the model's choice"
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(TOOL_NAME, name):
            raise ValueError(
                "a function's name must have 1 to 64 letters, digits, underscores and dashes, "
                f"got {show(name)}"
            )
        return name

    @field_validator("parameters")
    @classmethod
    def _object_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        if schema.get("type", "object") != "object":
            raise ValueError(
                "parameters must be a JSON schema of type 'object', "
                f"got type {show(schema['type'])}"
            )
        check_schema(schema, "parameters")
        return schema

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """What a call's arguments are valid against."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


class Tool(Wire):
    """A tool: a function."""

    type: str
    function: FunctionDefinition | None = None

    @model_validator(mode="after")
    def _is_a_function(self) -> Tool:
        if self.type != "function":
            raise ValueError(f"a tool must have type 'function', got {show(self.type)}")
        if self.function is None:
            raise ValueError("a tool of type 'function' must have a function")
        return self

    @property
    def definition(self) -> FunctionDefinition:
        """The function."""
        assert self.function is not None
        return self.function

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates know it."""
        function = {"name": self.definition.name}
        if self.definition.description is not None:
            function["description"] = self.definition.description
        parameters = self.definition.schema_of_arguments
        return {"type": "function", "function": {**function, "parameters": parameters}}


class NamedFunction(Wire):
    """A function's name."""

    name: str


class NamedTool(Wire):
    """A tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def check_choice_form(choice: Any) -> None:
    """Refuse what is no `tool_choice` in one sentence; raises ValueError."""
    if choice is None or (isinstance(choice, str) and choice in _CHOICES):
        return
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return
    raise ValueError(
        'tool_choice must be "none", "auto", "required" or '
        f'{{"type": "function", "function": {{"name": ...}}}}, got {show(choice)}'
    )


def check_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Refuse tools that cannot be told apart, and a choice of none of them; raises FieldError."""
    if len(tools) > MAX_TOOLS:
        raise FieldError("tools", f"tools takes at most {MAX_TOOLS} tools, got {len(tools)}")
    names: set[str] = set()
    for tool in tools:
        if tool.definition.name in names:
            raise FieldError(
                "tools", f"tools must have a name each, got {tool.definition.name!r} twice"
            )
        names.add(tool.definition.name)
    if choice == "required" and not tools:
        raise FieldError("tool_choice", 'tool_choice "required" needs tools, got none')
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        listed = ", ".join(sorted(names)) or "none"
        raise FieldError(
            "tool_choice",
            f"tool_choice must name one of the tools ({show(listed)}), "
            f"got {show(choice.function.name)}",
        )
