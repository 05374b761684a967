"""How long things may take: a body to arrive, a reader to read, a request in all.

However a request ends, its client gets a proper end: an answer with an error, an error event in
a stream that has begun, or, where it reads nothing any more, a closed connection. A route that
is ended this way is cancelled, which ends its generation and frees the slot.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusiongpt.server.errors import (
    ERROR_KIND,
    ApiError,
    error_event,
    error_response,
    server_error,
    unavailable,
)
from diffusiongpt.server.log import logger
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState

# Where `Connection` puts the function that closes it at once, in a request's "state".
ABORT_CONNECTION = "abort_connection"


class Limits:
    """Bounds every request in time. Plain ASGI, so that nothing is buffered on the way."""

    def __init__(self, app: ASGIApp, settings: Settings, state: ServerState) -> None:
        self._app = app
        self._settings = settings
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._settings)
        seconds = self._settings.request_timeout_seconds
        try:
            async with self._state.deadline(seconds) as deadline:
                await self._app(scope, exchange.receive, exchange.send)
        except TimeoutError as error:
            if not deadline.expired():
                await exchange.fail(error)
            elif self._state.is_over:
                await exchange.end(unavailable("the server has stopped before the answer was done"))
            else:
                await exchange.end(_timed_out(seconds))
        except ClientDisconnect:
            pass  # gone before its body had come: there is nobody to tell
        except Exception as error:
            await exchange.fail(error)


class Exchange:
    """One request and its answer: how far both have come, and what ends them."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body_seconds = settings.body_timeout_seconds
        self._reader_seconds = settings.slow_reader_seconds
        self._body_due = asyncio.get_running_loop().time() + self._body_seconds
        self._has_body = False
        self._has_started = False
        self._is_stream = False
        self._is_complete = False

    async def receive(self) -> Message:
        """The next message of the client; a body that does not end in time is a 408."""
        if self._has_body:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._body_due):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError(
                408,
                f"the body took longer than {self._body_seconds:g} s to arrive",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from error
        self._has_body = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send to the client; one that takes nothing for too long is cut off."""
        if message["type"] == "http.response.start":
            self._has_started = True
            kind = Headers(raw=message["headers"]).get("content-type", "")
            self._is_stream = kind.startswith("text/event-stream")
        elif not message.get("more_body", False):
            self._is_complete = True
        try:
            async with asyncio.timeout(self._reader_seconds):
                await self._send(message)
        except TimeoutError:
            await self._cut_off()

    async def end(self, error: ApiError) -> None:
        """Tell the client of an error in whatever way is left."""
        if self._is_complete:
            return
        if not self._has_started:
            await error_response(error, self._scope)(self._scope, self._receive, self.send)
        elif self._is_stream:
            self._scope["state"][ERROR_KIND] = error.kind
            await self.send(_body(error_event(error), more_body=True))
            await self.send(_body(b"", more_body=False))
        else:
            await self._cut_off()

    async def fail(self, error: Exception) -> None:
        """A defect of ours: the log has it all, the client a sentence."""
        logger.exception("request failed", path=self._scope["path"], exc_info=error)
        await self.end(server_error())

    async def _cut_off(self) -> None:
        """Close the connection without waiting for what the client has not read."""
        self._is_complete = True
        self._scope["state"][ERROR_KIND] = "slow_reader"
        abort = self._scope["state"].get(ABORT_CONNECTION)
        if abort is None:
            raise OSError("the client reads nothing any more")
        abort()
        # Lets the protocol note the loss, so that it tells the route like any other leaving.
        await asyncio.sleep(0)


def _body(data: bytes, *, more_body: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more_body}


def _timed_out(seconds: float) -> ApiError:
    # Clients repeat a 504 by themselves; what took too long once would do so again.
    return ApiError(
        504,
        f"the request took longer than {seconds:g} s, the most that this server gives one",
        type="server_error",
        code="request_timeout",
        headers={"x-should-retry": "false"},
    )
