"""GET /v1/models and /v1/models/{id}: what is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastapi import APIRouter

from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.server.errors import ApiError
from diffusiongpt.server.generator import Generator


class Models:
    """The models that are served, by name; the first one added comes first."""

    def __init__(self, generators: Iterable[Generator] = ()) -> None:
        self._generators: dict[str, Generator] = {}
        self._listeners: list[Callable[[Generator], None]] = []
        for generator in generators:
            self.add(generator)

    def add(self, generator: Generator) -> None:
        """Serve one more."""
        for listener in self._listeners:
            listener(generator)
        self._generators[generator.info.name] = generator

    def on_added(self, listener: Callable[[Generator], None]) -> None:
        """Tell a listener of every model, those that are there already first."""
        for generator in self:
            listener(generator)
        self._listeners.append(listener)

    def __iter__(self) -> Iterator[Generator]:
        return iter(list(self._generators.values()))

    def choose(self, name: str) -> Generator:
        """The model that a request names; a 404 that names those there are."""
        generator = self._generators.get(name)
        if generator is None:
            names = ", ".join(repr(each) for each in self._generators) or "none"
            verb = "are" if len(self._generators) > 1 else "is"
            raise ApiError(
                404,
                f"the model {name!r} is not served here; {names} {verb}",
                param="model",
                code="model_not_found",
            )
        return generator

    @property
    def failure(self) -> str | None:
        """Why a model cannot be served any more, in a sentence, or None."""
        return next((each.failure for each in self if each.failure is not None), None)


def model_routes(models: Models) -> APIRouter:
    """The model routes over all models."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe(each.info, started) for each in models]}

    @router.get("/v1/models/{model:path}")
    async def retrieve_model(model: str) -> dict[str, Any]:
        return _describe(models.choose(model).info, started)

    return router


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
            "block_lengths": list(info.block_lengths),
            "max_tokens": info.max_tokens,
            "num_parameters": info.num_parameters,
            "edits": info.can_edit,
            "tools": info.chat.tool_format.name,
            "template_knows_tools": info.chat.knows_tools,
            "thinking": info.chat.thinking is not None,
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
