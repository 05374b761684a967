"""The application: routes over models, and what every route has in common. No globals."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from diffusiongpt.server.auth import ApiKeys, read_api_keys
from diffusiongpt.server.chat import chat_routes
from diffusiongpt.server.completions import completion_routes
from diffusiongpt.server.edits import edit_routes
from diffusiongpt.server.errors import install_error_handlers
from diffusiongpt.server.gate import Gate
from diffusiongpt.server.generator import Generator
from diffusiongpt.server.health import health_routes
from diffusiongpt.server.infill import infill_routes
from diffusiongpt.server.limits import Limits
from diffusiongpt.server.metrics import Metrics, metrics_routes
from diffusiongpt.server.middleware import RequestRecords
from diffusiongpt.server.models import Models, model_routes
from diffusiongpt.server.openapi import describe
from diffusiongpt.server.playground import playground_routes
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState
from diffusiongpt.server.tracing import Traces

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

# What a page of another origin may read of an answer.
_EXPOSED = ["x-request-id", "x-diffusiongpt-seed", "x-diffusiongpt-ignored", "retry-after"]


def create_app(
    models: Models | Generator,
    settings: Settings | None = None,
    state: ServerState | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """The HTTP application that serves models.

    Models may be added later, while `state.is_loading`. With a `tracer` every generating request
    is a span.

    Raises:
        SettingsError: the API keys cannot be read.
    """
    settings = settings or Settings()
    state = state or ServerState()
    models = models if isinstance(models, Models) else Models([models])
    metrics = Metrics()
    models.on_added(metrics.watch)
    app = FastAPI(
        title="diffusionGPT",
        version=version("diffusiongpt"),
        # No page that loads scripts from elsewhere; the document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)
    for routes in (chat_routes, completion_routes, infill_routes, edit_routes):
        app.include_router(routes(models, settings))
    app.include_router(model_routes(models))
    app.include_router(health_routes(models, state))
    app.include_router(metrics_routes(metrics))
    app.include_router(playground_routes())
    describe(app)
    _surround(app, read_api_keys(settings), settings, state, metrics)
    if tracer is not None:
        app.add_middleware(Traces, tracer=tracer, keeps_text=settings.log_prompts)
    return app


def _surround(
    app: FastAPI, keys: ApiKeys, settings: Settings, state: ServerState, metrics: Metrics
) -> None:
    """Put around every route what all have in common; the last one added is the outermost."""
    app.add_middleware(Gate, keys=keys, state=state, max_concurrent=settings.max_concurrent_per_key)
    app.add_middleware(Limits, settings=settings, state=state)
    if settings.cors_origins:
        # Around the gate, so that refusals can be read and a preflight needs no key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    app.add_middleware(RequestRecords, metrics=metrics, log_bodies=settings.log_prompts)
