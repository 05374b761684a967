"""The part of the engine that the server uses; tests hand in a fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from diffusiongpt.engine.canvas import Infill
from diffusiongpt.engine.chat import Message
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.frame import Frame
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.observer import Observer
from diffusiongpt.engine.params import GenerationParams

Prompt = str | Sequence[int] | Infill


class Generation(Protocol):
    """One running request: an async iterator of its frames, the last with a finish reason."""

    def __aiter__(self) -> AsyncIterator[Frame]: ...

    @property
    def params(self) -> GenerationParams:
        """What the engine made of the request: defaults filled in, the seed drawn."""
        ...

    @property
    def num_pending(self) -> int:
        """Frames that wait to be read."""
        ...

    def abort(self) -> None:
        """End the request; idempotent, and fine after its end."""
        ...


class Generator(Protocol):
    """Starts requests on one model."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def failure(self) -> str | None:
        """Why nothing can be served any more, in a sentence, or None."""
        ...

    @property
    def forwards(self) -> Mapping[str, int]:
        """Forwards so far by how they ran: replayed, or eagerly and why."""
        ...

    @property
    def num_slots(self) -> int: ...

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every frame from now on."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; may raise InvalidRequest."""
        ...

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a chat; may raise InvalidRequest."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; may raise InvalidRequest."""
        ...

    def compile(self, constraint: Constraint) -> None:
        """Get a constraint ready, in any thread; may raise InvalidRequest."""
        ...

    def submit(self, prompt: Prompt, params: GenerationParams) -> Generation:
        """Start a request; raises an EngineError before anything has started."""
        ...


def abort_all(generations: Sequence[Generation]) -> None:
    """End whatever still runs."""
    for generation in generations:
        generation.abort()


async def merge(
    generations: Sequence[Generation],
) -> AsyncGenerator[tuple[int, Frame], None]:
    """The frames of all generations, each with its generation's index, as they come.

    A frame is taken from its generation only when it can be handed on, so that `num_pending`
    goes on saying how far a reader is behind.
    """
    if len(generations) == 1:
        async for frame in generations[0]:
            yield 0, frame
        return
    iterators = [aiter(generation) for generation in generations]
    reading = {asyncio.ensure_future(_next(each)): i for i, each in enumerate(iterators)}
    try:
        while reading:
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: reading[task]):
                index = reading.pop(task)
                if (came := task.result()) is not None:
                    yield index, came
                    reading[asyncio.ensure_future(_next(iterators[index]))] = index
    finally:
        for task in reading:
            task.cancel()


async def _next(frames: AsyncIterator[Frame]) -> Frame | None:
    return await anext(frames, None)
