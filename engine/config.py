"""How an engine is set up: values only, checked, torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffusiongpt.engine.errors import LoadError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The engine's settings.

    Attributes:
        model: a folder, a hub id, or None for the bundled model. name: its public id.
        family: name of a FamilySpec, where the folder does not say.
        dtype: of weights and activations. device: "cpu" or "cuda".
        num_slots: requests that may run at once.
        max_tokens: longest completion.
        token_budget: most tokens of one packed forward; None is 8192, or four contexts when
            `deterministic`.
        head_chunk: rows that go through the output head at once; bounds the logits' memory.
        max_waiting: requests that may wait for a slot.
        cache_blocks: keep the keys and values of settled blocks (block-causal models; exact).
        compile: compile the layers at load (needs a C++ compiler and some seconds); large
            batches then take about two thirds of the time.
        deterministic: pad every forward to `token_budget` tokens and every head call to
            `head_chunk` rows, so that a request's tokens are bit for bit the same in any
            company. Slower.
    """

    model: str | None = None
    name: str | None = None
    family: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str = "cpu"
    num_slots: int = 32
    max_tokens: int = 4096
    token_budget: int | None = None
    head_chunk: int = 512
    max_waiting: int = 256
    cache_blocks: bool = True
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("num_slots", "max_tokens", "head_chunk"):
            if getattr(self, name) < 1:
                raise LoadError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_waiting < 0:
            raise LoadError(f"max_waiting must be at least 0, got {self.max_waiting}")
        if self.token_budget is not None and self.token_budget < 1:
            raise LoadError(f"token_budget must be at least 1, got {self.token_budget}")
