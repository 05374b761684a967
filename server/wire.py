"""What every part of a request's schema is made of."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

# A list whose first wrong item is the last one looked at: a sentence names one, and a body may
# hold a million.
Item = TypeVar("Item")
Quickly = Annotated[list[Item], Field(fail_fast=True)]


class Wire(BaseModel):
    """An object of a request: strict types, unknown keys ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class FieldError(ValueError):
    """Fields that do not go together, in a sentence; `param` is the one to blame."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def show(value: object) -> str:
    """A client's value in a sentence, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        return "a value that is nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."
