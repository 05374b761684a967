"""Puts an engine behind the server and runs it until a signal says stop."""

from __future__ import annotations

import socket

import typer

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.app import create_app
from diffusiongpt.server.run import run_server
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState


def serve_engine(engine: Engine, settings: Settings, listener: socket.socket) -> None:
    """Serve on a bound socket; returns after a graceful stop."""
    worker = EngineWorker(engine)
    worker.start()
    state = ServerState()
    typer.echo(
        f"Serving {engine.info.name} on http://{settings.host}:{listener.getsockname()[1]} "
        f"(OpenAI API at /v1, health at /health); Ctrl-C stops.",
        err=True,
    )
    try:
        run_server(create_app(worker, settings, state), settings, state, listener)
    finally:
        worker.stop()
