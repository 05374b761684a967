"""A name for every request, in its answer's `x-request-id` and in the log, and its account."""

from __future__ import annotations

import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusiongpt.server.errors import ERROR_KIND
from diffusiongpt.server.log import logger
from diffusiongpt.server.metrics import Metrics

_MAX_ID_LENGTH = 128


class RequestRecords:
    """Keeps the client's `x-request-id` or makes one; logs and counts every request.

    Plain ASGI: a wrapper that buffers messages would hide that a client has gone.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_bodies: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._log_bodies = log_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})
        record = _Record(receive, send, request_id)
        receiving = record.receive if self._log_bodies else receive
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receiving, record.send)
            finally:
                self._write(scope, record)

    def _write(self, scope: Scope, record: _Record) -> None:
        seconds = time.perf_counter() - record.started
        kind = scope["state"].get(ERROR_KIND)
        # The pattern and not the path: of paths there is no end, and each would be a series.
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.note_request(
            route=route,
            status=record.status,
            seconds=seconds,
            error_kind=kind,
        )
        extra = {"error": kind} if kind else {}
        if self._log_bodies:
            extra["body"] = bytes(record.body).decode(errors="replace")
        logger.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=record.status,
            seconds=round(seconds, 4),
            **extra,
        )


class _Record:
    """What is remembered of one request. A status of 0: the client left before an answer."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self.started = time.perf_counter()
        self.status = 0
        self.body = bytearray()
        self._receive = receive
        self._send = send
        self._request_id = request_id

    async def receive(self) -> Message:
        message = await self._receive()
        self.body += message.get("body", b"")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)


def _request_id(given: str | None) -> str:
    if given and len(given) <= _MAX_ID_LENGTH and given.isascii() and given.isprintable():
        return given
    return f"req_{uuid.uuid4().hex}"
