"""The pipeline of this model: pip install diffusiongpt."""

from diffusiongpt.engine.pipeline import TextDiffusionPipeline

__all__ = ["TextDiffusionPipeline"]
