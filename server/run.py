"""Runs the application, and ends it gracefully.

The first SIGTERM or SIGINT stops admitting and lets running answers finish, for so long as the
settings say; the second exits at once.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState


class DrainingServer(uvicorn.Server):
    """A uvicorn server that tells the routes when it is about to stop."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, exit on the second."""
        # uvicorn itself exits at once on a second SIGINT only.
        if self._state.is_draining:
            sig = signal.SIGINT
        self._state.is_draining = True
        super().handle_exit(sig, frame)

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


def run_server(
    app: FastAPI, settings: Settings, state: ServerState, listener: socket.socket
) -> None:
    """Serve on a bound socket until a signal says stop; running answers end first."""
    # Its default cuts live streams a moment after the signal.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=settings.drain_seconds,
        # Names of internal parts are nobody's business.
        server_header=False,
    )
    DrainingServer(config, state).run(sockets=[listener])
