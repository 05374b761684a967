"""Draws quality against forwards. matplotlib is imported when it is needed, and not before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusiongpt.training.config import ConfigError
from diffusiongpt.training.generation import CurvePoint


def draw_curve(points: Sequence[CurvePoint], path: str | Path, title: str) -> None:
    """Write a PNG: perplexity, and the entropy without which it says little, against forwards.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    figure_class, canvas_class = _import_matplotlib()
    figure = figure_class(figsize=(9, 4), layout="constrained")
    canvas_class(figure)
    for place, (label, value) in enumerate(
        (
            ("perplexity", _perplexity),
            ("unigram entropy, nats", _entropy),
        )
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        for policy in dict.fromkeys(point.policy for point in points):
            own = sorted((p for p in points if p.policy == policy), key=lambda p: p.forwards)
            axes.plot([p.forwards for p in own], [value(p) for p in own], "o-", label=policy)
        axes.set(xscale="log", xlabel="forwards per completion", ylabel=label)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.suptitle(title)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise ConfigError(f"the plot {str(path)!r} cannot be written: {error.strerror}") from error


def _perplexity(point: CurvePoint) -> float:
    return point.quality.perplexity


def _entropy(point: CurvePoint) -> float:
    return point.quality.unigram_entropy


def _import_matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install diffusiongpt[plot]") from error
    return Figure, FigureCanvasAgg
