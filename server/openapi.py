"""The OpenAPI document: every generating route with what it takes, answers and streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from diffusiongpt.server.answers import (
    ChatAnswer,
    ChatChunk,
    EditAnswer,
    EditChunk,
    ErrorEnvelope,
    Health,
    InfillAnswer,
    InfillChunk,
    ModelBody,
    ModelList,
    TextAnswer,
    TextChunk,
)
from diffusiongpt.server.completions import CompletionRequest, FimRequest
from diffusiongpt.server.edits import EditRequest
from diffusiongpt.server.infill import InfillRequest
from diffusiongpt.server.protocol import ChatRequest

Model = type[BaseModel]
_SCHEMAS = "#/components/schemas/"
_REFUSALS = {
    "400": "a field has a value that cannot be honoured",
    "401": "an API key is needed",
    "404": "the model is not served",
    "408": "the body took too long to arrive",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "429": "too many requests wait, Retry-After says how long",
    "500": "the engine failed on this answer",
    "503": "the server is stopping, loading or failed",
    "504": "the request took longer than it may",
}
# FastAPI's own word for a bad request; ours are envelopes.
_NEVER_SENT = ("HTTPValidationError", "ValidationError")


@dataclass(frozen=True, slots=True)
class Route:
    """What a generating route takes, answers and streams."""

    request: Model
    answer: Model
    chunk: Model


ROUTES = {
    "/v1/chat/completions": Route(ChatRequest, ChatAnswer, ChatChunk),
    "/v1/completions": Route(CompletionRequest, TextAnswer, TextChunk),
    "/v1/fim/completions": Route(FimRequest, TextAnswer, TextChunk),
    "/v1/infill": Route(InfillRequest, InfillAnswer, InfillChunk),
    "/v1/edits": Route(EditRequest, EditAnswer, EditChunk),
}
READS: dict[str, Model] = {
    "/v1/models": ModelList,
    "/v1/models/{model}": ModelBody,
    "/health": Health,
    "/ready": Health,
}


def describe(app: FastAPI) -> None:
    """Let the application's document say all that `ROUTES` and `READS` know."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            plain = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = _complete(plain)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    models: set[Model] = {ErrorEnvelope, *READS.values()}
    for path, route in ROUTES.items():
        models |= {route.request, route.answer, route.chunk}
        document["paths"][path]["post"] |= _describe_route(route)
    for path, answer in READS.items():
        content = {"application/json": {"schema": _reference(answer)}}
        responses = {"200": {"description": "the answer", "content": content}}
        document["paths"][path]["get"]["responses"] = responses
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=_SCHEMAS + "{model}"
    )
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components |= definitions["$defs"]
    for name in _NEVER_SENT:
        components.pop(name, None)
    return document


def _describe_route(route: Route) -> dict[str, Any]:
    answers = {
        "application/json": {"schema": _reference(route.answer)},
        # The events' data, but for the last: [DONE].
        "text/event-stream": {"schema": _reference(route.chunk)},
    }
    error = {"application/json": {"schema": _reference(ErrorEnvelope)}}
    request = {"application/json": {"schema": _reference(route.request)}}
    refusals = {
        status: {"description": text, "content": error} for status, text in _REFUSALS.items()
    }
    return {
        "requestBody": {"required": True, "content": request},
        "responses": {"200": {"description": "the answer", "content": answers}, **refusals},
    }


def _reference(model: Model) -> dict[str, str]:
    return {"$ref": _SCHEMAS + model.__name__}
