"""Puts engines behind the server and runs it until a signal says stop.

The server answers from the first moment on, with 503 while the models are loaded beside it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from diffusiongpt.cli.refusal import fail
from diffusiongpt.server.app import create_app
from diffusiongpt.server.log import logger
from diffusiongpt.server.models import Models
from diffusiongpt.server.run import make_server
from diffusiongpt.server.settings import ModelSource, Settings, SettingsError
from diffusiongpt.server.state import ServerState
from diffusiongpt.server.tracing import make_tracer

if TYPE_CHECKING:
    from diffusiongpt.engine.worker import EngineWorker


class Loader:
    """Loads the models in a thread of its own.

    Attributes:
        failure: why a model could not be loaded, in a sentence. workers: the engines that run.
    """

    def __init__(self, settings: Settings, add: Callable[[EngineWorker], None]) -> None:
        self.failure: str | None = None
        self.workers: list[EngineWorker] = []
        self._settings = settings
        self._add = add
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def start(self, *, on_loaded: Callable[[], None], on_failed: Callable[[], None]) -> None:
        """Start the thread; one of the two is called in it at its end."""
        self._on_loaded, self._on_failed = on_loaded, on_failed
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether models are still being loaded."""
        return self._thread.is_alive()

    def _run(self) -> None:
        from diffusiongpt.engine.errors import LoadError

        try:
            for source in self._settings.models:
                self._load(source)
        except LoadError as error:
            self.failure = str(error)
        except Exception as error:
            logger.exception("loading failed")
            self.failure = f"the model cannot be loaded: {type(error).__name__}: {error}"
        if self.failure is None:
            self._on_loaded()
        else:
            self._on_failed()

    def _load(self, source: ModelSource) -> None:
        from diffusiongpt.engine.engine import Engine
        from diffusiongpt.engine.errors import LoadError
        from diffusiongpt.engine.worker import EngineWorker

        engine = Engine.from_pretrained(
            source.path, name=source.name, **self._settings.engine_fields
        )
        if engine.tokenizer is None:
            raise LoadError(f"{engine.info.name} has no tokenizer.json, which serving text needs")
        logger.info("model loaded", model=engine.info.name, head_runs=engine.head_runs)
        worker = EngineWorker(engine)
        worker.start()
        self.workers.append(worker)
        self._add(worker)


def serve_models(settings: Settings, listener: socket.socket) -> None:
    """Serve on a bound socket; returns after a graceful stop, exits if a model does not load."""
    state = ServerState(is_loading=True)
    models = Models()
    try:
        app = create_app(models, settings, state, make_tracer(os.environ))
        server = make_server(app, settings, state)
    except SettingsError as error:
        fail(str(error), code=2)
    loader = Loader(settings, models.add)

    def open_doors() -> None:
        state.is_loading = False
        names = ", ".join(each.info.name for each in models)
        typer.echo(
            f"Serving {names} on http://{settings.host}:{listener.getsockname()[1]} "
            f"(OpenAI API at /v1, health at /health); Ctrl-C stops.",
            err=True,
        )

    def give_up() -> None:
        server.should_exit = True

    loader.start(on_loaded=open_doors, on_failed=give_up)
    try:
        server.run(sockets=[listener])
    finally:
        for worker in loader.workers:
            worker.stop()
    if loader.is_running:
        _leave()
    if loader.failure is not None:
        fail(loader.failure)


def _leave() -> None:
    """Exit while a model is being loaded: that thread cannot be interrupted, and the
    interpreter must not be taken apart under it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
