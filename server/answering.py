"""From what a client asks to what it gets: one path for every generating route."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from diffusiongpt.engine.errors import EngineError
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.params import GenerationParams, seeds_of
from diffusiongpt.server.body import read_json
from diffusiongpt.server.errors import (
    ApiError,
    engine_error,
    from_engine,
    from_validation,
    invalid,
    unavailable,
)
from diffusiongpt.server.generator import Generation, Generator, abort_all, merge
from diffusiongpt.server.logprobs import SettledToken
from diffusiongpt.server.models import Models
from diffusiongpt.server.options import DiffusionOptions
from diffusiongpt.server.parts import Collected
from diffusiongpt.server.protocol import GenerationRequest
from diffusiongpt.server.reading import ChoiceReader
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.shapes import Shape
from diffusiongpt.server.streaming import AnswerHead, ChunkWriter, StreamStyle, usage_chunk
from diffusiongpt.server.tracing import watch
from diffusiongpt.server.usage import Stopwatch, sum_usage, summary, usage_of

# A reader this many frames behind is slow: frames are dropped for it, content is not.
_FRAMES_BEHIND = 16
# What the engine calls a parameter and every client knows by another name.
_NAMES = {name: f"diffusion.{name}" for name in DiffusionOptions.model_fields}

Ask = TypeVar("Ask", bound=GenerationRequest)
PromptT = TypeVar("PromptT")


async def read_ask(
    request: Request, kind: type[Ask], models: Models, settings: Settings
) -> tuple[Ask, Generator]:
    """The checked body of a request, and the model that it names; raises ApiError."""
    body = await read_json(request, settings.max_body_bytes)
    try:
        ask = kind.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from error
    if ask.num_choices > settings.max_choices:
        raise invalid(
            f"this server answers a request at most {settings.max_choices} times, "
            f"got n={ask.num_choices}",
            "n",
        )
    generator = models.choose(ask.model)
    with refusing({"constraint": ask.constraint_field}):
        for constraint in ask.constraints:
            # It may take a moment, and other requests go on meanwhile.
            await asyncio.to_thread(generator.compile, constraint)
    return ask, generator


@contextlib.contextmanager
def refusing(names: Mapping[str, str]) -> Iterator[None]:
    """Turn the engine's refusals into answers; `names` are the route's for its parameters."""
    try:
        yield
    except EngineError as error:
        raise from_engine(error, {**_NAMES, **names}) from error


def require_text(generator: Generator) -> None:
    """Refuse a model that knows no text: its answers would be empty; raises InvalidRequest."""
    generator.decode(())


def start(
    submit: Callable[[PromptT, GenerationParams], Generation],
    prompts: Sequence[PromptT],
    params: GenerationParams,
    num_choices: int,
) -> list[Generation]:
    """Start `num_choices` generations of every prompt, prompt after prompt, or none at all.

    Generation i draws with the seed plus i; without a seed the first draws one.
    """
    generations: list[Generation] = []
    try:
        for index, prompt in enumerate(each for each in prompts for _ in range(num_choices)):
            first = generations[0].params.seed if generations else params.seed
            seed = seeds_of(first, index + 1)[index]
            generations.append(submit(prompt, params.replace(seed=seed)))
    except EngineError:
        abort_all(generations)
        raise
    return generations


async def respond(
    request: Request,
    ask: GenerationRequest,
    generations: Sequence[Generation],
    shape: Shape,
    info: ModelInfo,
    settings: Settings,
) -> Response:
    """The answer, streamed or whole, as the client asked."""
    generations = watch(request.scope, ask, info.name, generations, shape.reader)
    headers = _headers(ask, generations)
    head = AnswerHead(
        id=f"{shape.id_prefix}-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=info.name,
        object=shape.chunk_object if ask.stream else shape.whole_object,
    )
    if ask.stream:
        return _stream(ask, generations, shape, head, settings, headers)
    return await _answer(request, ask, generations, shape, head, headers)


def _headers(ask: GenerationRequest, generations: Sequence[Generation]) -> dict[str, str]:
    headers = {"x-diffusiongpt-seed": str(generations[0].params.seed)}
    if ask.ignored:
        names = ",".join(name for name in ask.ignored if name.isascii() and name.isprintable())
        headers["x-diffusiongpt-ignored"] = names[:500]
    return headers


class _AbortingStream(EventSourceResponse):
    """Server-sent events whose generations end with the response, however that ends."""

    def __init__(self, generations: Sequence[Generation], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Not in the event generator: one that was never started runs no `finally`.
        try:
            await super().__call__(scope, receive, send)
        finally:
            abort_all(self._generations)


def _stream(
    ask: GenerationRequest,
    generations: Sequence[Generation],
    shape: Shape,
    head: AnswerHead,
    settings: Settings,
    headers: dict[str, str],
) -> Response:
    style = StreamStyle(
        mode=ask.frames,
        interval=ask.diffusion.frame_interval,
        location=ask.diffusion.frame_location,
        include_usage=ask.include_usage,
    )
    writers = [
        ChunkWriter(head, shape, generation.params, style, index=index)
        for index, generation in enumerate(generations)
    ]
    return _AbortingStream(
        generations,
        _events(generations, writers, head, ask),
        headers=headers,
        ping=settings.keep_alive_seconds,
        # ": ping", the default, stops a widely used client in the middle of the stream.
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
        sep="\n",
    )


async def _events(
    generations: Sequence[Generation],
    writers: Sequence[ChunkWriter],
    head: AnswerHead,
    ask: GenerationRequest,
) -> AsyncIterator[dict[str, str]]:
    last: dict[int, Frame] = {}
    async with contextlib.aclosing(merge(generations)) as frames:
        async for index, frame in frames:
            if (error := _failure(frame)) is not None:
                yield _event(error.envelope())
                return
            last[index] = frame
            is_behind = generations[index].num_pending > _FRAMES_BEHIND
            for chunk in writers[index].write(frame, is_behind=is_behind):
                yield _event(chunk)
    if ask.include_usage:
        usage = sum_usage([last[index] for index in sorted(last)], ask.num_choices)
        reasoning = sum(writer.reasoning_tokens for writer in writers)
        yield _event(usage_chunk(head, generations[0].params, usage, reasoning))
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


@dataclass(slots=True)
class _Whole:
    """A choice as it comes together."""

    reader: ChoiceReader
    parts: Collected = field(default_factory=Collected)
    settled: list[SettledToken] = field(default_factory=list)
    last: Frame | None = None

    def add(self, frame: Frame) -> None:
        """Take over what a frame brings."""
        parts, settled = self.reader.read(frame)
        self.parts.add(parts)
        self.settled += settled
        self.last = frame


async def _answer(
    request: Request,
    ask: GenerationRequest,
    generations: Sequence[Generation],
    shape: Shape,
    head: AnswerHead,
    headers: dict[str, str],
) -> Response:
    """The whole answer at once; ends the generations when the client goes away before it."""
    stopwatch = Stopwatch()
    collecting = asyncio.ensure_future(_collect(generations, shape, stopwatch))
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it; nginx's word for the log
        wholes = collecting.result()
    finally:
        abort_all(generations)
        collecting.cancel()
        leaving.cancel()
    choices, last_frames = [], []
    for index, whole in enumerate(wholes):
        assert whole.last is not None
        last_frames.append(whole.last)
        settled = None if ask.num_logprobs is None else whole.settled
        choices.append(shape.whole(index, whole.parts, settled, whole.last))
    usage = sum_usage(last_frames, ask.num_choices)
    body = head.fields() | {
        "choices": choices,
        "usage": usage_of(usage, sum(whole.reader.reasoning_tokens for whole in wholes)),
        "diffusion": summary(generations[0].params, usage),
        "timings": stopwatch.timings(usage),
    }
    return JSONResponse(body, headers=headers)


async def _collect(
    generations: Sequence[Generation], shape: Shape, stopwatch: Stopwatch
) -> list[_Whole]:
    """All choices, complete; raises the ApiError of the first that fails."""
    wholes = [_Whole(shape.reader()) for _ in generations]
    async with contextlib.aclosing(merge(generations)) as frames:
        async for index, frame in frames:
            if (error := _failure(frame)) is not None:
                raise error
            if frame.content:
                stopwatch.note_content()
            wholes[index].add(frame)
    return wholes


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
