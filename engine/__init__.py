"""A batched denoising engine for diffusion language models.

Names are loaded on first use, so that the torch-free modules (params, frames, families) can be
imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusiongpt.engine.canvas import Hole, Infill
    from diffusiongpt.engine.completion import Completion
    from diffusiongpt.engine.config import EngineConfig
    from diffusiongpt.engine.constraint import Constraint
    from diffusiongpt.engine.draft import Draft
    from diffusiongpt.engine.engine import Engine
    from diffusiongpt.engine.errors import (
        ContextLengthExceeded,
        EngineError,
        EngineFailure,
        InvalidRequest,
        LoadError,
        QueueFull,
    )
    from diffusiongpt.engine.frame import Change, CommittedToken, FinishReason, Frame, Usage
    from diffusiongpt.engine.info import ModelInfo
    from diffusiongpt.engine.params import EditParams, GenerationParams
    from diffusiongpt.engine.pipeline import TextDiffusionPipeline
    from diffusiongpt.engine.score import Score
    from diffusiongpt.engine.worker import EngineWorker, Generation

_HOMES = {
    "EngineConfig": "config",
    "Hole": "canvas",
    "Infill": "canvas",
    "Completion": "completion",
    "Draft": "draft",
    "Constraint": "constraint",
    "Engine": "engine",
    "ContextLengthExceeded": "errors",
    "EngineError": "errors",
    "EngineFailure": "errors",
    "InvalidRequest": "errors",
    "LoadError": "errors",
    "QueueFull": "errors",
    "Change": "frame",
    "CommittedToken": "frame",
    "FinishReason": "frame",
    "Frame": "frame",
    "Usage": "frame",
    "ModelInfo": "info",
    "EditParams": "params",
    "GenerationParams": "params",
    "TextDiffusionPipeline": "pipeline",
    "Score": "score",
    "EngineWorker": "worker",
    "Generation": "worker",
}

__all__ = [
    "Change",
    "CommittedToken",
    "Completion",
    "Constraint",
    "ContextLengthExceeded",
    "Draft",
    "EditParams",
    "Engine",
    "EngineConfig",
    "EngineError",
    "EngineFailure",
    "EngineWorker",
    "FinishReason",
    "Frame",
    "Generation",
    "GenerationParams",
    "Hole",
    "Infill",
    "InvalidRequest",
    "LoadError",
    "ModelInfo",
    "QueueFull",
    "Score",
    "TextDiffusionPipeline",
    "Usage",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
