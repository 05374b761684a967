"""Reads a JSON body: bounded, strict, and refused in a sentence."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from fastapi import Request

from diffusiongpt.server.errors import ApiError, invalid


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The body as a JSON object of at most `limit` bytes; raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type must be application/json, got {kind or 'none'!r}")
    try:
        value = json.loads(
            # Bytes would be taken for UTF-16 or UTF-32 where they look like it.
            (await _read(request, limit)).decode(),
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_twins,
        )
        # Lone surrogates pass the parser and could not be sent or encoded afterwards.
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise invalid(f"the body must be valid Unicode: {error.reason}") from error
    except RecursionError as error:
        raise invalid("the body is nested too deeply") from error
    except ValueError as error:
        raise invalid(f"the body must be valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise invalid(f"the body must be a JSON object, got {type(value).__name__}")
    return value


async def _read(request: Request, limit: int) -> bytes:
    too_large = ApiError(413, f"the body may have at most {limit} bytes", code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, each in pairs:
        if name in value:
            raise ValueError(f"an object gives {name[:80]!r} twice")
        value[name] = each
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
