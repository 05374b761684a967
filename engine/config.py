"""How an engine is set up: values only, checked, torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from diffusiongpt.engine.errors import LoadError

PREFIX_CACHE_BYTES = 512 * 2**20
QuantizeKind = Literal["int8", "int4"]


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
        cache_budget: most positions, over all running requests, whose keys and values are kept;
            None is four token budgets. A request with an exact cache computes few tokens at a
            time, so that this and not the token budget bounds how many of them run at once.
        row_budget: most positions, over all blocks being denoised, whose distributions one step
            looks at; bounds the time of a step where the vocabulary is large. None is the
            token budget, which never binds.
        head_chunk: rows that go through the output head at once; bounds the logits' memory.
        max_waiting: requests that may wait for a slot.
        cache_blocks: keep the keys and values of settled blocks (block-causal models; exact).
        compile: compile the backbone at load (needs a C++ compiler and some 15 seconds); a
            forward then takes about two thirds of the time.
        capture: replay recorded forwards (CUDA graphs); None is on CUDA only, and there only for
            models that `assembly.captures_forwards` names. On the CPU it pads and gains nothing.
            With a cache of settled blocks, memory for all of `cache_budget` is taken at the start.
        fused_head: run the head with its draws as one Triton kernel where a batch permits; None is
            on CUDA only, and there only where the kernel passes its trial at loading.
        ticks_per_round: most denoising steps until the host reads what they changed. More of them
            keep a CUDA device from waiting for the host, and with `capture` whole steps are then
            replayed; frames come that many steps at a time.
        quantize: keep the layers' weights in 8 or 4 bits (needs torchao): less memory, not
            less time.
        prefix_cache_bytes: most memory of settled blocks kept for later requests that begin
            alike (exact; needs `cache_blocks`); 0 keeps none, None is 512 MiB, or 0 when
            `deterministic`, for a forward of another shape rounds differently.
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
    cache_budget: int | None = None
    row_budget: int | None = None
    head_chunk: int = 512
    max_waiting: int = 256
    cache_blocks: bool = True
    compile: bool = False
    capture: bool | None = None
    fused_head: bool | None = None
    ticks_per_round: int = 1
    quantize: QuantizeKind | None = None
    prefix_cache_bytes: int | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.quantize not in (None, *get_args(QuantizeKind)):
            raise LoadError(f"quantize must be int8 or int4, got {self.quantize!r}")
        for name in ("num_slots", "max_tokens", "head_chunk", "max_waiting", "ticks_per_round"):
            if getattr(self, name) < 1:
                raise LoadError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("token_budget", "cache_budget", "row_budget"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise LoadError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.capture and self.deterministic:
            raise LoadError(
                "capture must be off or absent when deterministic, because a forward that cannot "
                "be replayed rounds differently, got True"
            )
        if self.fused_head and self.deterministic:
            raise LoadError(
                "fused_head must be off or absent when deterministic, because it rounds with the "
                "number of rows, got True"
            )
        self._check_prefix_cache()

    def _check_prefix_cache(self) -> None:
        if self.prefix_cache_bytes is None or self.prefix_cache_bytes == 0:
            return
        if self.prefix_cache_bytes < 0:
            raise LoadError(f"prefix_cache_bytes must be at least 0, got {self.prefix_cache_bytes}")
        if self.deterministic:
            raise LoadError(
                "prefix_cache_bytes must be 0 or absent when deterministic, because keys that "
                f"another request computed may round differently, got {self.prefix_cache_bytes}"
            )
        if not self.cache_blocks:
            raise LoadError(
                "prefix_cache_bytes must be 0 or absent without cache_blocks, "
                f"got {self.prefix_cache_bytes}"
            )
