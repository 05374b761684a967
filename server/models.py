"""GET /v1/models and /v1/models/{id}: what is served."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.server.errors import ApiError
from diffusiongpt.server.generator import Generator


def model_routes(generator: Generator) -> APIRouter:
    """The model routes over a generator."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe(generator.info, started)]}

    @router.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> dict[str, Any]:
        check_model(model, generator.info)
        return _describe(generator.info, started)

    return router


def check_model(model: str, info: ModelInfo) -> None:
    """Refuse a model that is not served, with a 404 that names the one that is."""
    if model != info.name:
        raise ApiError(
            404,
            f"the model {model!r} is not served here; {info.name!r} is",
            param="model",
            code="model_not_found",
        )


def _describe(info: ModelInfo, created: int) -> dict[str, Any]:
    defaults = info.defaults
    return {
        "id": info.name,
        "object": "model",
        "created": created,
        "owned_by": "diffusiongpt",
        "max_model_len": info.context_length,
        "diffusion": {
            "family": info.family,
            "attention": info.attention,
            "block_length": info.block_length,
            "max_tokens": info.max_tokens,
            "num_parameters": info.num_parameters,
            "policies": {name: {"adaptive": each.adaptive} for name, each in PRESETS.items()},
            "defaults": {
                "policy": defaults.policy,
                "temperature": defaults.temperature,
                "top_p": defaults.top_p,
                "top_k": defaults.top_k,
                "threshold": defaults.threshold,
                "factor": defaults.factor,
                "entropy_bound": defaults.entropy_bound,
                "gap": defaults.gap,
                "max_tokens": defaults.max_tokens,
            },
        },
    }
