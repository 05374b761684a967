"""POST /v1/infill: a text with holes, filled by a model that sees both sides of each."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from diffusiongpt.engine.canvas import Hole, Infill
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.logprobs import MAX_LOGPROBS
from diffusiongpt.server.answering import read_ask, refusing, require_text, respond, start
from diffusiongpt.server.completions import is_token_ids
from diffusiongpt.server.formats import StructuredOutputs
from diffusiongpt.server.lengths import submit_lengths
from diffusiongpt.server.models import Models
from diffusiongpt.server.protocol import GenerationRequest, check_logprobs
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import InfillShape
from diffusiongpt.server.wire import FieldError, Quickly, show

MAX_SEGMENTS = 1024
# What the engine calls by another name.
_NAMES = {"prompt": "segments", "max_tokens": "segments", "logprobs": "top_logprobs"}


class HoleSegment(BaseModel):
    """A hole of `mask` positions, or of the likeliest of several lengths."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    mask: int | Literal["auto"] = Field(description='positions to fill, or "auto"')
    candidates: Quickly[int] | None = Field(None, description='lengths that "auto" tries')
    structured_outputs: StructuredOutputs | None = Field(
        None, description="what this hole's text must be, if not what the others' must"
    )

    @model_validator(mode="after")
    def _sensible(self) -> HoleSegment:
        if self.mask != "auto" and self.mask < 1:
            raise FieldError("segments", f'mask must be at least 1 or "auto", got {self.mask}')
        if self.mask != "auto" and self.candidates is not None:
            raise FieldError("segments", f'candidates go with mask "auto", got mask {self.mask}')
        return self

    @property
    def hole(self) -> Hole:
        """The hole as the engine has it."""
        asked = self.structured_outputs
        constraint = None if asked is None else asked.constraint
        if self.candidates is None:
            return Hole(self.mask, constraint=constraint)
        return Hole(self.mask, tuple(self.candidates), constraint)


class InfillRequest(GenerationRequest):
    """The body of POST /v1/infill."""

    _UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "max_tokens": (None,),
    }

    segments: Quickly[
        Annotated[str | Quickly[int] | HoleSegment, Field(union_mode="left_to_right")]
    ] = Field(description="texts, token ids and holes, in the order of the text")
    logprobs: bool | None = Field(None, description="tell each token's log-probability")
    top_logprobs: int | None = Field(
        None, description=f"and those of so many likely tokens, 0 to {MAX_LOGPROBS}"
    )

    @field_validator("segments", mode="before")
    @classmethod
    def _known_segments(cls, segments: Any) -> Any:
        """Say what a segment may be, and not what each variant of it misses."""
        if not isinstance(segments, list):
            return segments
        if len(segments) > MAX_SEGMENTS:
            raise ValueError(f"segments takes at most {MAX_SEGMENTS} parts, got {len(segments)}")
        for index, each in enumerate(segments):
            if not (isinstance(each, str | dict) or is_token_ids(each)):
                raise ValueError(
                    f'segments.{index} must be a text, token ids or {{"mask": length}}, '
                    f"got {show(each)}"
                )
        return segments

    @model_validator(mode="after")
    def _logprobs_go_together(self) -> InfillRequest:
        check_logprobs(self.logprobs, self.top_logprobs)
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Most likely tokens to tell with each token; None tells no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def parts(self) -> list[str | list[int] | Hole]:
        """The segments as the engine has them."""
        return [each.hole if isinstance(each, HoleSegment) else each for each in self.segments]

    @property
    def told(self) -> list[dict[str, Any]]:
        """The segments."""
        segments = [
            each.model_dump(exclude_none=True) if isinstance(each, HoleSegment) else each
            for each in self.segments
        ]
        return [{"role": "user", "content": segments}]

    @property
    def constraints(self) -> list[Constraint]:
        """Those of the holes, too."""
        holes = [each.constraint for each in self.parts if isinstance(each, Hole)]
        return [*super().constraints, *(each for each in holes if each is not None)]

    @property
    def constraint_field(self) -> str:
        """The request's own field, if it has one."""
        is_own = self.structured_outputs is not None or self.response_format is not None
        return super().constraint_field if is_own else "segments"

    @property
    def asked_tokens(self) -> int:
        """Positions of all holes; without any the engine refuses."""
        return max(sum(_longest(each) for each in self.parts if isinstance(each, Hole)), 1)


def _longest(hole: Hole) -> int:
    """Positions of a hole, of its longest candidate if there are several."""
    return hole.length if isinstance(hole.length, int) else max(hole.candidates, default=1)


def infill_routes(models: Models, settings: Settings) -> APIRouter:
    """The infill route over all models."""
    router = APIRouter()

    @router.post("/v1/infill")
    async def create_infill(request: Request) -> Response:
        ask, generator = await read_ask(request, InfillRequest, models, settings)
        with refusing({**_NAMES, "constraint": ask.constraint_field}):
            require_text(generator)
            params = ask.to_params(generator.info)
            submit = partial(submit_lengths, generator)
            generations = start(submit, [Infill(*ask.parts)], params, ask.num_choices)
        return await respond(request, ask, generations, InfillShape(), generator.info, settings)

    return router
