"""GET /health and /ready: is the server well, and may requests be sent to it?"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from diffusiongpt.server.models import Models
from diffusiongpt.server.state import ServerState


def health_routes(models: Models, state: ServerState) -> APIRouter:
    """The health routes over all models."""
    router = APIRouter()

    @router.get("/health")
    async def report_health() -> JSONResponse:
        # A server that drains is well: nobody should end it before its answers have ended.
        is_well = models.failure is None and not state.is_loading
        return JSONResponse(_report(models, state), 200 if is_well else 503)

    @router.get("/ready")
    async def report_readiness() -> JSONResponse:
        is_ready = models.failure is None and state.name == "ok"
        return JSONResponse(_report(models, state), 200 if is_ready else 503)

    return router


def _report(models: Models, state: ServerState) -> dict[str, Any]:
    if models.failure is not None:
        return {"status": "failed", "reason": models.failure}
    names = [each.info.name for each in models]
    return {
        "status": state.name,
        "model": names[0] if names else None,
        "models": names,
        "running": sum(each.num_running for each in models),
        "waiting": sum(each.num_waiting for each in models),
    }
