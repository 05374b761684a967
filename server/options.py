"""The objects of a request that say how its answer is denoised, edited and streamed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from diffusiongpt.engine.draft import Pick
from diffusiongpt.engine.params import CacheName, EditParams
from diffusiongpt.server.wire import Wire

FrameMode = Literal["off", "delta", "full"]
FrameLocation = Literal["chunk", "delta"]


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool = False


class EditOptions(Wire):
    """When a filled position gets another token."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    threshold: float = Field(0.9, description="another token is more probable than this")
    margin: float = Field(1.0, description="and so many times as probable as the one it replaces")
    doubt: float = Field(0.0, description="mask again what a look at the full block doubts so much")
    max_rounds: int = Field(16, description="looks at a full block")

    def to_params(self) -> EditParams:
        """What the engine is asked for; raises InvalidRequest."""
        return EditParams(
            threshold=self.threshold,
            margin=self.margin,
            doubt=self.doubt,
            max_rounds=self.max_rounds,
        )


class DiffusionOptions(Wire):
    """How the answer is denoised; the extension object `diffusion`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    policy: str | None = Field(None, description="which masked positions are committed in a step")
    steps: int | None = Field(None, description="budget of denoising steps")
    block_length: int | None = Field(
        None, description="positions denoised at a time, 0 for the whole canvas"
    )
    threshold: float | None = Field(None, description="gate of the policy threshold")
    factor: float | None = Field(None, description="gate of the policy factor")
    entropy_bound: float | None = Field(None, description="gate of entropy_bound, in nats")
    max_per_step: int | None = Field(
        None, description="most positions that an adaptive policy commits in a step"
    )
    stable: int | None = Field(None, description="gate of stability: steps with the same top token")
    credit: float | None = Field(None, description="what credit adds, in its own policy")
    position_bias: float | None = Field(None, description="preference for positions on the left")
    remask: float | None = Field(None, description="how much the remdm policies mask again")
    gap: int | None = Field(None, description="least distance of one step's commits")
    edits: bool | EditOptions | None = Field(
        None, description="replace filled tokens, where the model can", union_mode="left_to_right"
    )
    cache: CacheName = Field("off", description="an approximation, for bidirectional models")
    scaffold: int | None = Field(
        None, description="write a schema's keys first, and give each value so many positions"
    )
    strength: float | None = Field(
        None, description="share of a draft's tokens that is masked and denoised again, 0 to 1"
    )
    pick: Pick | None = Field(None, description="which tokens of a draft are masked again")
    frames: FrameMode = Field("off", description="changes only, or the whole canvas each time")
    frame_interval: int = Field(1, ge=1, description="send every so many frames")
    frame_location: FrameLocation = Field("chunk", description="where a frame is in its chunk")

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(
                        f"diffusion has no key {key!r}; it takes {', '.join(cls.model_fields)}"
                    )
        return data
