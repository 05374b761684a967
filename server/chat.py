"""POST /v1/chat/completions: the OpenAI chat API over a denoising engine."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from diffusiongpt.server.answering import read_ask, refusing, respond, start
from diffusiongpt.server.models import Models
from diffusiongpt.server.protocol import ChatRequest
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import ChatShape


def chat_routes(models: Models, settings: Settings) -> APIRouter:
    """The chat route over all models."""
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=_body_schema())
    async def create_chat_completion(request: Request) -> Response:
        ask, generator = await read_ask(request, ChatRequest, models, settings)
        with refusing({"prompt": "messages", "logprobs": "top_logprobs"}):
            prompt = generator.encode_chat(
                [_message(each.role, each.text) for each in ask.messages]
            )
            generations = start(generator, [prompt], ask.to_params(generator.info), ask.num_choices)
        return await respond(request, ask, generations, ChatShape(), generator.info, settings)

    return router


def _message(role: str, text: str) -> dict[str, str]:
    # OpenAI's newer word for the same thing; templates know the older one.
    return {"role": "system" if role == "developer" else role, "content": text}


def _body_schema() -> dict[str, Any]:
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
