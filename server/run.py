"""Runs the application, and ends it gracefully.

The first SIGTERM or SIGINT stops admitting and lets running answers finish, for so long as the
settings say; the second exits at once.
"""

from __future__ import annotations

import signal
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


def run_server(app: FastAPI, settings: Settings, state: ServerState) -> None:
    """Serve until a signal says stop; returns once running answers have ended."""
    # Its default cuts live streams a moment after the signal.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=settings.drain_seconds,
        # Names of internal parts are nobody's business.
        server_header=False,
    )
    DrainingServer(config, state).run()
