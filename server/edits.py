"""POST /v1/edits: a draft, refined; and what a chat's `prediction` has in common with it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, field_validator

from diffusiongpt.engine.draft import DEFAULT_STRENGTH, Draft
from diffusiongpt.server.answering import read_ask, refusing, require_text, respond, start
from diffusiongpt.server.completions import is_token_ids
from diffusiongpt.server.generator import Generator
from diffusiongpt.server.models import Models
from diffusiongpt.server.options import DiffusionOptions
from diffusiongpt.server.protocol import GenerationRequest
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import EditShape
from diffusiongpt.server.wire import Quickly, show


class EditRequest(GenerationRequest):
    """The body of POST /v1/edits."""

    _UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"logprobs": (None, False)}

    input: Annotated[str | Quickly[int], Field(union_mode="left_to_right")] = Field(
        description="the draft, a text or token ids"
    )
    instruction: str | None = Field(
        None, description="what to do with it, for a model that was trained to chat"
    )
    max_tokens: int | None = Field(
        None, description="length of the answer's canvas; the draft's own unless given"
    )

    @field_validator("input", mode="before")
    @classmethod
    def _text_or_ids(cls, value: Any) -> Any:
        """Say what an input may be, and not what each variant of it misses."""
        if not (isinstance(value, str) or is_token_ids(value)):
            raise ValueError(f"input must be a text or token ids, got {show(value)}")
        return value

    @property
    def told(self) -> list[dict[str, Any]]:
        """What to do, and the draft."""
        return [{"role": "user", "content": [self.instruction, self.input]}]

    @property
    def has_draft(self) -> bool:
        """Always."""
        return True

    @property
    def asked_tokens(self) -> int | None:
        """Length of the answer's canvas; None is the draft's own."""
        return self.max_tokens


def make_draft(text: str | list[int], options: DiffusionOptions) -> Draft:
    """A draft refined as the request says; raises InvalidRequest."""
    strength = DEFAULT_STRENGTH if options.strength is None else options.strength
    ids_or_text = text if isinstance(text, str) else tuple(text)
    return Draft(ids_or_text, strength, options.pick or "doubtful")


def edit_routes(models: Models, settings: Settings) -> APIRouter:
    """The edit route over all models."""
    router = APIRouter()

    @router.post("/v1/edits")
    async def create_edit(request: Request) -> Response:
        ask, generator = await read_ask(request, EditRequest, models, settings)
        names = {"draft": "input", "prompt": "instruction" if ask.instruction else "input"}
        if ask.max_tokens is None:
            # It follows from the draft.
            names["max_tokens"] = "input"
        with refusing(names):
            require_text(generator)
            draft = make_draft(ask.input, ask.diffusion)
            # It may take a moment, and other requests go on meanwhile.
            ids = await asyncio.to_thread(_ids_of, ask.input, generator)
            length = len(ids) if ask.max_tokens is None else ask.max_tokens
            params = ask.to_params(generator.info, length).replace(draft=draft)
            prompt = await asyncio.to_thread(_prompt_of, ask, generator)
            generations = start(generator.submit, [prompt], params, ask.num_choices)
        return await respond(request, ask, generations, EditShape(), generator.info, settings)

    return router


def _ids_of(text: str | list[int], generator: Generator) -> list[int]:
    return generator.encode(text) if isinstance(text, str) else text


def _prompt_of(ask: EditRequest, generator: Generator) -> list[int]:
    """A chat that asks for what the instruction says; nothing, where there is none."""
    if not ask.instruction:
        return []
    text = ask.input if isinstance(ask.input, str) else generator.decode(ask.input)
    return generator.encode_chat([{"role": "user", "content": f"{ask.instruction}\n\n{text}"}])
