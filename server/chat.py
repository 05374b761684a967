"""POST /v1/chat/completions: the OpenAI chat API over a denoising engine."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from diffusiongpt.server.answering import read_ask, refusing, respond, start
from diffusiongpt.server.edits import make_draft
from diffusiongpt.server.models import Models
from diffusiongpt.server.protocol import ChatRequest
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import ChatShape


def chat_routes(models: Models, settings: Settings) -> APIRouter:
    """The chat route over all models."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        ask, generator = await read_ask(request, ChatRequest, models, settings)
        names = {"prompt": "messages", "logprobs": "top_logprobs", "draft": "prediction"}
        with refusing(names):
            prompt = generator.encode_chat(
                [_message(each.role, each.text) for each in ask.messages]
            )
            params = ask.to_params(generator.info)
            if ask.prediction is not None:
                params = params.replace(draft=make_draft(ask.prediction.text, ask.diffusion))
            generations = start(generator.submit, [prompt], params, ask.num_choices)
        return await respond(request, ask, generations, ChatShape(), generator.info, settings)

    return router


def _message(role: str, text: str) -> dict[str, str]:
    # OpenAI's newer word for the same thing; templates know the older one.
    return {"role": "system" if role == "developer" else role, "content": text}
