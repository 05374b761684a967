"""What an answer must be: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from diffusiongpt.engine.constraint import Constraint, ConstraintKind

# vLLM's older fields, and where each is now.
OLDER_NAMES = {
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs.grammar",
    "guided_decoding_backend": None,
    "guided_whitespace_pattern": None,
}


class _Format(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data if isinstance(data, dict) else ():
            if key not in known:
                raise ValueError(f"unknown key {key[:80]!r}; {', '.join(known)} are accepted")
        return data


class JsonSchemaFormat(_Format):
    """A JSON schema with its name."""

    name: str = Field(description="the schema's name, 1 to 64 letters, digits, _ or -")
    description: str | None = Field(None, description="for the reader; it changes nothing")
    schema_: dict[str, Any] | bool = Field(
        alias="schema", description="what the answer satisfies", union_mode="left_to_right"
    )
    strict: bool | None = Field(None, description="the schema is kept in any case")

    @field_validator("name")
    @classmethod
    def _short_name(cls, name: str) -> str:
        plain = name.replace("_", "a").replace("-", "a")
        if not (1 <= len(name) <= 64 and plain.isalnum() and plain.isascii()):
            raise ValueError(
                f"json_schema.name must be 1 to 64 letters, digits, _ or -, got {name[:80]!r}"
            )
        return name


class ResponseFormat(_Format):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "json_schema"}}},
            "then": {
                "required": ["json_schema"],
                "properties": {"json_schema": {"type": "object"}},
            },
            "else": {"properties": {"json_schema": {"type": "null"}}},
        }
    )

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="any text, a JSON object, or what a schema says"
    )
    json_schema: JsonSchemaFormat | None = Field(None, description="of the type json_schema")

    @model_validator(mode="after")
    def _schema_where_one_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(
                "response_format.json_schema must be given if the type is json_schema, and only "
                f"then, got type={self.type!r}"
            )
        return self

    @property
    def constraint(self) -> Constraint | None:
        """The engine's word for it; raises InvalidRequest."""
        if self.json_schema is not None:
            return Constraint(kind="json_schema", source=json.dumps(self.json_schema.schema_))
        return Constraint(kind="json_object") if self.type == "json_object" else None


class StructuredOutputs(_Format):
    """vLLM's `structured_outputs`: one of several languages."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    json_: dict[str, Any] | bool | str | None = Field(
        None, alias="json", description="a JSON schema, or its text", union_mode="left_to_right"
    )
    json_object: Literal[True] | None = Field(None, description="true: a JSON object")
    regex: str | None = Field(None, description="an expression of the whole answer")
    choice: list[str] | None = Field(None, description="texts, one of which is the answer")
    grammar: str | None = Field(None, description="a Lark grammar")

    @model_validator(mode="after")
    def _one_of_them(self) -> StructuredOutputs:
        if len(self._given) != 1:
            raise ValueError(
                "structured_outputs must have exactly one of json, json_object, regex, "
                f"choice and grammar, got {', '.join(self._given) or 'none'}"
            )
        return self

    @property
    def _given(self) -> dict[str, Any]:
        values = {
            "json": self.json_,
            "json_object": self.json_object,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def constraint(self) -> Constraint:
        """The engine's word for it; raises InvalidRequest."""
        ((name, value),) = self._given.items()
        kinds: dict[str, ConstraintKind] = {
            "json": "json_schema",
            "json_object": "json_object",
            "regex": "regex",
            "choice": "choice",
            "grammar": "grammar",
        }
        if name == "json_object":
            return Constraint(kind="json_object")
        source = value if isinstance(value, str) else json.dumps(value)
        return Constraint(kind=kinds[name], source=source)
