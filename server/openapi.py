"""The OpenAPI document: every generating route with what it takes, answers and streams."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
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
from diffusiongpt.server.bounds import state_bounds
from diffusiongpt.server.chat_request import ChatRequest
from diffusiongpt.server.completions import CompletionRequest, FimRequest
from diffusiongpt.server.edits import EditRequest
from diffusiongpt.server.infill import InfillRequest

Model = type[BaseModel]
Json = dict[str, Any]
_SCHEMAS = "#/components/schemas/"
_REFERENCE = re.compile(rf'"{_SCHEMAS}([^"]+)"')
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
# Of these a request without a body can get some only.
_REFUSED_READS = ("401", "404", "500", "503", "504")
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
}
REPORTS: dict[str, Model] = {"/health": Health, "/ready": Health}


def describe(app: FastAPI) -> None:
    """Let the application's document say all that `ROUTES` and `READS` know."""

    def document() -> Json:
        if app.openapi_schema is None:
            plain = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = _complete(plain)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: Json) -> Json:
    models: set[Model] = {ErrorEnvelope, *READS.values(), *REPORTS.values()}
    requests = {route.request for route in ROUTES.values()}
    for path, route in ROUTES.items():
        models |= {route.request, route.answer, route.chunk}
        document["paths"][path]["post"] |= _describe_route(route)
    for path, answer in READS.items():
        document["paths"][path]["get"]["responses"] = _describe_read(answer)
    for path, report in REPORTS.items():
        document["paths"][path]["get"]["responses"] = {
            "200": _said("all is well", report),
            "503": _said("not now; the status says why", report),
        }
    document["paths"]["/metrics"]["get"]["responses"] = _describe_metrics()
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=_SCHEMAS + "{model}"
    )
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components |= definitions["$defs"]
    for name in _NEVER_SENT:
        components.pop(name, None)
    for name in _reachable(components, {request.__name__ for request in requests}):
        state_bounds(components[name])
    return document


def _reachable(components: Json, names: set[str]) -> set[str]:
    """Schemas, and those that they refer to."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        names |= set(_REFERENCE.findall(json.dumps(components[name]))) - found
    return found


def _describe_route(route: Route) -> Json:
    answers = {
        "application/json": {"schema": _reference(route.answer)},
        "text/event-stream": {"itemSchema": _describe_event(route.chunk)},
    }
    request = {"application/json": {"schema": _reference(route.request)}}
    return {
        "requestBody": {"required": True, "content": request},
        "responses": {
            "200": {"description": "the answer", "content": answers},
            **_refusals(_REFUSALS),
        },
    }


def _describe_event(chunk: Model) -> Json:
    """An event: a chunk, an error that ends the stream, or the mark of its end."""
    parsed = {"anyOf": [_reference(chunk), _reference(ErrorEnvelope)]}
    content = {"contentMediaType": "application/json", "contentSchema": parsed}
    data = {"anyOf": [{"const": "[DONE]"}, {"type": "string", "pattern": "^[{]", **content}]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _describe_read(answer: Model) -> Json:
    return {"200": _said("the answer", answer), **_refusals(_REFUSED_READS)}


def _describe_metrics() -> Json:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {"200": {"description": "the meters", "content": text}, **_refusals(_REFUSED_READS)}


def _refusals(statuses: Iterable[str]) -> Json:
    return {status: _said(_REFUSALS[status], ErrorEnvelope) for status in statuses}


def _said(description: str, model: Model) -> Json:
    content = {"application/json": {"schema": _reference(model)}}
    return {"description": description, "content": content}


def _reference(model: Model) -> dict[str, str]:
    return {"$ref": _SCHEMAS + model.__name__}
