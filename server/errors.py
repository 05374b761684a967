"""Errors as OpenAI's clients expect them: {"error": {message, type, param, code}}.

Every refusal is one sentence. What the engine raises is translated here and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from diffusiongpt.engine.errors import (
    ContextLengthExceeded,
    EngineFailure,
    InvalidRequest,
    QueueFull,
)
from diffusiongpt.server.wire import FieldError, show

RETRY_AFTER_SECONDS = 2
# Where a request's scope keeps the kind of error that ended it, in its "state".
ERROR_KIND = "error_kind"
# pydantic puts the variant of a union into the path; clients never wrote it.
_VARIANT = re.compile(r"str|int|bool|float|list\[.*\]|dict\[.*\]|HoleSegment|function-.*")


class ApiError(Exception):
    """A refusal with its HTTP status and OpenAI's fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """What errors are counted by: the code, or the type of those without one."""
        return self.code or self.type

    def envelope(self) -> dict[str, object]:
        """The JSON body."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 that names the parameter."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str) -> ApiError:
    """A 503: not now, perhaps later."""
    return ApiError(
        503,
        message,
        type="server_error",
        code="unavailable",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def too_many(message: str, code: str) -> ApiError:
    """A 429: the same request may be honoured in a moment."""
    retry = {
        "Retry-After": str(RETRY_AFTER_SECONDS),
        "retry-after-ms": str(RETRY_AFTER_SECONDS * 1000),
    }
    return ApiError(429, message, type="rate_limit_error", code=code, headers=retry)


def server_error() -> ApiError:
    """A 500 for a defect of ours; only the log says more."""
    return ApiError(500, "the server failed on this request; its log says why", type="server_error")


def engine_error(message: str) -> ApiError:
    """A 500: the engine failed in the middle of an answer."""
    return ApiError(500, message, type="server_error", code="engine_error")


def from_engine(error: Exception, names: Mapping[str, str] | None = None) -> ApiError:
    """What an exception of the engine means to a client.

    Args:
        names: the client's names of the engine's parameters, where they differ.
    """
    if isinstance(error, InvalidRequest):
        param = (names or {}).get(error.param or "", error.param)
        code = "context_length_exceeded" if isinstance(error, ContextLengthExceeded) else None
        return invalid(str(error), param, code)
    if isinstance(error, QueueFull):
        return too_many(str(error), "queue_full")
    if isinstance(error, EngineFailure):
        return unavailable(str(error))
    raise error


def from_validation(error: ValidationError) -> ApiError:
    """What pydantic found, as one sentence: the deepest error, which of a union is the one of
    the variant that came closest."""
    errors = error.errors(include_url=False)
    # A sentence of ours says more than that a variant's type is another one.
    first = max(errors, key=lambda each: (len(each["loc"]), each["type"] == "value_error"))
    path = (
        ".".join(str(part) for part in first["loc"] if not _VARIANT.fullmatch(str(part)))
        or "the body"
    )
    if first["type"] == "missing":
        return invalid(f"{path} is required", path)
    if first["type"] == "value_error":
        wrong = first["ctx"]["error"]
        return invalid(str(wrong), wrong.param if isinstance(wrong, FieldError) else path)
    return invalid(f"{path}: {_lower_first(first['msg'])}, got {show(first['input'])}", path)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def error_response(error: ApiError, scope: Scope) -> JSONResponse:
    """The envelope as an answer; notes its kind for whoever counts errors."""
    scope.setdefault("state", {})[ERROR_KIND] = error.kind
    return JSONResponse(error.envelope(), error.status, headers=error.headers)


def error_event(error: ApiError) -> bytes:
    """The envelope as an event of a stream that has begun."""
    return f"data: {json.dumps(error.envelope(), ensure_ascii=False)}\n\n".encode()


def install_error_handlers(app: FastAPI) -> None:
    """Let every refusal of every route leave as an OpenAI envelope."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error_response(error, request.scope)

    async def refuse_route(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        headers = dict(error.headers or {})
        answer = ApiError(error.status_code, str(error.detail), code=code, headers=headers)
        return error_response(answer, request.scope)

    app.add_exception_handler(ApiError, refuse)
    app.add_exception_handler(HTTPException, refuse_route)
