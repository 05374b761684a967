"""The application: routes over a generator, no globals."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from diffusiongpt.server.chat import chat_routes
from diffusiongpt.server.completions import completion_routes
from diffusiongpt.server.errors import install_error_handlers
from diffusiongpt.server.generator import Generator
from diffusiongpt.server.health import health_routes
from diffusiongpt.server.infill import infill_routes
from diffusiongpt.server.middleware import RequestIds
from diffusiongpt.server.models import model_routes
from diffusiongpt.server.playground import playground_routes
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState


def create_app(
    generator: Generator, settings: Settings | None = None, state: ServerState | None = None
) -> FastAPI:
    """The HTTP application that serves a generator."""
    settings = settings or Settings()
    state = state or ServerState()
    app = FastAPI(
        title="diffusionGPT",
        version=version("diffusiongpt"),
        # No page that loads scripts from elsewhere; the document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)
    for routes in (chat_routes, completion_routes, infill_routes):
        app.include_router(routes(generator, settings, state))
    app.include_router(model_routes(generator))
    app.include_router(health_routes(generator, state))
    app.include_router(playground_routes())
    app.add_middleware(RequestIds)
    return app
