"""GET /health and /ready: 200 while requests are served, 503 with the reason otherwise."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from diffusiongpt.server.generator import Generator
from diffusiongpt.server.state import ServerState


def health_routes(generator: Generator, state: ServerState) -> APIRouter:
    """The health routes over a generator."""
    router = APIRouter()

    @router.get("/health")
    @router.get("/ready")
    async def report_health() -> JSONResponse:
        if generator.failure is not None:
            return JSONResponse({"status": "failed", "reason": generator.failure}, 503)
        if state.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse(
            {
                "status": "ok",
                "model": generator.info.name,
                "running": generator.num_running,
                "waiting": generator.num_waiting,
            }
        )

    return router
