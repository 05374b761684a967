"""POST /v1/chat/completions: the OpenAI chat API over a denoising engine."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from diffusiongpt.engine.errors import EngineError
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.server.body import read_json
from diffusiongpt.server.errors import (
    ApiError,
    engine_error,
    from_engine,
    from_validation,
    unavailable,
)
from diffusiongpt.server.generator import Generation, Generator
from diffusiongpt.server.models import check_model
from diffusiongpt.server.protocol import ChatRequest
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState
from diffusiongpt.server.streaming import (
    AnswerHead,
    ChunkWriter,
    Stopwatch,
    finish_reason_of,
    summary,
    usage_of,
)

# A reader this many frames behind is slow: frames are dropped for it, content is not.
_FRAMES_BEHIND = 16
# What the engine calls a parameter and the client knows by another name.
_NAMES = {
    "prompt": "messages",
    **{
        name: f"diffusion.{name}"
        for name in (
            "policy",
            "steps",
            "block_length",
            "threshold",
            "factor",
            "entropy_bound",
            "gap",
        )
    },
}


def chat_routes(generator: Generator, settings: Settings, state: ServerState) -> APIRouter:
    """The chat route over a generator."""
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=_body_schema())
    async def create_chat_completion(request: Request) -> Response:
        body = await read_json(request, settings.max_body_bytes)
        try:
            ask = ChatRequest.model_validate(body)
        except ValidationError as error:
            raise from_validation(error) from error
        check_model(ask.model, generator.info)
        state.refuse_while_draining()
        try:
            prompt = generator.encode_chat(
                [_message(each.role, each.text) for each in ask.messages]
            )
            generation = generator.submit(prompt, to_params(ask, generator.info))
        except EngineError as error:
            raise from_engine(error, _NAMES) from error
        headers = _headers(ask, generation)
        if ask.stream:
            return _stream(ask, generation, generator.info, settings, headers)
        return await _answer(request, generation, generator.info, headers)

    return router


def to_params(ask: ChatRequest, info: ModelInfo) -> GenerationParams:
    """What the engine is asked for; raises InvalidRequest."""
    options = ask.diffusion
    asked = ask.max_completion_tokens if ask.max_tokens is None else ask.max_tokens
    stop = (ask.stop,) if isinstance(ask.stop, str) else tuple(ask.stop or ())
    return GenerationParams(
        max_tokens=info.defaults.max_tokens if asked is None else asked,
        policy=options.policy,
        steps=options.steps,
        block_length=options.block_length,
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.top_k,
        seed=ask.seed,
        threshold=options.threshold,
        factor=options.factor,
        entropy_bound=options.entropy_bound,
        gap=options.gap,
        stop=stop,
        watch=ask.frames != "off",
    )


def _message(role: str, text: str) -> dict[str, str]:
    # OpenAI's newer word for the same thing; templates know the older one.
    return {"role": "system" if role == "developer" else role, "content": text}


def _headers(ask: ChatRequest, generation: Generation) -> dict[str, str]:
    headers = {"x-diffusiongpt-seed": str(generation.params.seed)}
    if ask.ignored:
        names = ",".join(name for name in ask.ignored if name.isascii() and name.isprintable())
        headers["x-diffusiongpt-ignored"] = names[:500]
    return headers


def _head(info: ModelInfo, kind: str) -> AnswerHead:
    return AnswerHead(
        id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=info.name, object=kind
    )


class _AbortingStream(EventSourceResponse):
    """Server-sent events whose generation ends with the response, however that ends."""

    def __init__(self, generation: Generation, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in the event generator: one that was never started runs no `finally`.
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.abort()


def _stream(
    ask: ChatRequest,
    generation: Generation,
    info: ModelInfo,
    settings: Settings,
    headers: dict[str, str],
) -> Response:
    writer = ChunkWriter(
        _head(info, "chat.completion.chunk"),
        generation.params,
        mode=ask.frames,
        interval=ask.diffusion.frame_interval,
        location=ask.diffusion.frame_location,
        include_usage=ask.stream_options is not None and ask.stream_options.include_usage,
    )
    return _AbortingStream(
        generation,
        _events(generation, writer),
        headers=headers,
        ping=settings.keep_alive_seconds,
        # ": ping", the default, stops a widely used client in the middle of the stream.
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
        sep="\n",
    )


async def _events(generation: Generation, writer: ChunkWriter) -> AsyncIterator[dict[str, str]]:
    async for frame in generation:
        if (error := _failure(frame)) is not None:
            yield _event(error.envelope())
            return
        is_behind = generation.num_pending > _FRAMES_BEHIND
        for chunk in writer.write(frame, is_behind=is_behind):
            yield _event(chunk)
    yield {"data": "[DONE]"}


def _event(value: object) -> dict[str, str]:
    return {"data": json.dumps(value, ensure_ascii=False, separators=(",", ":"))}


def _failure(frame: Frame) -> ApiError | None:
    """The error of a generation that ended without an answer."""
    if frame.finish_reason is FinishReason.ERROR:
        return engine_error(frame.error or "the engine failed")
    if frame.finish_reason is FinishReason.ABORT:
        return unavailable("the request was ended before its answer was complete")
    return None


async def _answer(
    request: Request, generation: Generation, info: ModelInfo, headers: dict[str, str]
) -> Response:
    """The whole answer at once; ends the generation when the client goes away before it."""
    stopwatch = Stopwatch()
    collecting = asyncio.ensure_future(_collect(generation))
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it; nginx's word for the log
        content, last = collecting.result()
    finally:
        generation.abort()
        collecting.cancel()
        leaving.cancel()
    if (error := _failure(last)) is not None:
        raise error
    usage = last.usage
    assert usage is not None
    body = _head(info, "chat.completion").fields() | {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": None,
                "finish_reason": finish_reason_of(last),
            }
        ],
        "usage": usage_of(usage),
        "diffusion": summary(generation.params, usage),
        "timings": stopwatch.timings(usage),
    }
    return JSONResponse(body, headers=headers)


async def _collect(generation: Generation) -> tuple[str, Frame]:
    content = []
    async for frame in generation:
        content.append(frame.content)
        last = frame
    return "".join(content), last


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _body_schema() -> dict[str, Any]:
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
