"""Runs the application, and ends it gracefully.

The first SIGTERM or SIGINT stops admitting and lets running answers finish, for so long as the
settings say; what still runs then is told so and ended. The second signal exits at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from diffusiongpt.server.connection import Connection
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState

# After the drain: the time in which ended answers send their last event.
_FAREWELL_SECONDS = 3


class DrainingServer(uvicorn.Server):
    """A uvicorn server that tells the routes when it is about to stop."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, drain_seconds: float = 30.0
    ) -> None:
        super().__init__(config)
        self._state = state
        self._drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, die of the second."""
        if self._state.is_draining:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)
        self._state.is_draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting and wait for running answers, but not for ever."""
        self._state.is_draining = True
        end = asyncio.get_running_loop().call_later(self._drain_seconds, self._state.end_all)
        await super().shutdown(sockets)
        end.cancel()
        for connection in list(self.server_state.connections):
            # Whoever has not read its farewell by now will not.
            if isinstance(connection, Connection):
                connection.transport.abort()
        await asyncio.sleep(0)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the stop signals; unlike uvicorn's own, do not die of them after a clean stop."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        stops = (signal.SIGINT, signal.SIGTERM)
        previous = {stop: signal.signal(stop, self.handle_exit) for stop in stops}
        try:
            yield
        finally:
            for stop, handler in previous.items():
                signal.signal(stop, handler)


def bind(settings: Settings) -> socket.socket:
    """Take the address, without accepting anything yet.

    Raises:
        OSError: it is taken, or not an address of this machine.
    """
    family, kind, _, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM
    )[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def make_server(app: FastAPI, settings: Settings, state: ServerState) -> DrainingServer:
    """A server that is ready to run on a bound socket until a signal says stop."""
    # Its default cuts live streams a moment after the signal.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        # The last resort; `Limits` ends what still runs after the drain itself.
        timeout_graceful_shutdown=settings.drain_seconds + _FAREWELL_SECONDS,
        # Names of internal parts are nobody's business.
        server_header=False,
    )
    return DrainingServer(config, state, settings.drain_seconds)
