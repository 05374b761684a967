"""POST /v1/infill: a text with holes, filled by a model that sees both sides of each."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.server.answering import read_ask, refusing, respond, start
from diffusiongpt.server.completions import is_token_ids
from diffusiongpt.server.generator import Generator
from diffusiongpt.server.protocol import GenerationRequest, show
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import InfillShape
from diffusiongpt.server.state import ServerState


class HoleSegment(BaseModel):
    """A hole of `mask` positions."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    mask: int = Field(ge=1, description="positions to fill")


class InfillRequest(GenerationRequest):
    """The body of POST /v1/infill."""

    _UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "max_tokens": (None,),
        "logprobs": (None, False),
    }

    segments: list[Annotated[str | list[int] | HoleSegment, Field(union_mode="left_to_right")]] = (
        Field(description="texts, token ids and holes, in the order of the text")
    )

    @field_validator("segments", mode="before")
    @classmethod
    def _known_segments(cls, segments: Any) -> Any:
        """Say what a segment may be, and not what each variant of it misses."""
        for index, each in enumerate(segments if isinstance(segments, list) else ()):
            if not (isinstance(each, str | dict) or is_token_ids(each)):
                raise ValueError(
                    f'segments.{index} must be a text, token ids or {{"mask": length}}, '
                    f"got {show(each)}"
                )
        return segments

    @property
    def parts(self) -> list[str | list[int] | Hole]:
        """The segments as the engine has them."""
        return [
            Hole(each.mask) if isinstance(each, HoleSegment) else each for each in self.segments
        ]

    @property
    def asked_tokens(self) -> int:
        """Positions of all holes; without any the engine refuses."""
        return max(sum(each.mask for each in self.segments if isinstance(each, HoleSegment)), 1)


def infill_routes(generator: Generator, settings: Settings, state: ServerState) -> APIRouter:
    """The infill route over a generator."""
    router = APIRouter()

    @router.post("/v1/infill")
    async def create_infill(request: Request) -> Response:
        ask = await read_ask(request, InfillRequest, generator, settings, state)
        with refusing({"prompt": "segments"}):
            params = ask.to_params(generator.info)
            generations = start(generator, [Infill(*ask.parts)], params, ask.num_choices)
        return await respond(request, ask, generations, InfillShape(), generator.info, settings)

    return router
