"""Generators without a model, whose every frame can be written down by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from diffusiongpt.engine.canvas import Infill
from diffusiongpt.engine.chat import PLAIN_CHAT, ChatStyle, Message
from diffusiongpt.engine.completion import Prompt
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.frame import FinishReason, Frame, Usage
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.logprobs import PositionLogprobs, TokenLogprob
from diffusiongpt.engine.observer import Observer
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.text import TextCanvas

INFO = ModelInfo(
    name="fake",
    family="modernbert",
    attention="bidirectional",
    context_length=64,
    block_length=None,
    vocab_size=256,
    num_parameters=1,
    max_tokens=512,
    defaults=GenerationParams(
        max_tokens=32, policy="entropy_bound", temperature=1.0, top_p=1.0, top_k=0, gap=1
    ),
)


def frames_of(
    data: bytes,
    order: Sequence[int],
    *,
    batch: int = 1,
    stop: Sequence[str] = (),
    length: int | None = None,
    block_length: int = 8,
) -> list[Frame]:
    """The frames of a completion whose tokens are the bytes of `data`, committed in `order`.

    The log-probability of the token at position i is -i, and the next byte is as likely.
    """
    length = length or len(data)
    text = TextCanvas(lambda token_id: bytes([token_id]), length, stop=stop, watch=True)
    common = {"request_id": "r", "steps": length, "block_length": block_length, "length": length}
    frames = [Frame(step=0, block=0, masked=length, **common)]  # type: ignore[arg-type]
    for step, start in enumerate(range(0, len(order), batch), 1):
        positions = order[start : start + batch]
        tokens = [(position, data[position]) for position in positions]
        update = text.commit([(position, token, 0.5) for position, token in tokens])
        reason = None
        if update.stopped or start + batch >= len(order):
            update = update.followed_by(text.finish(len(data)))
            reason = FinishReason.STOP
        frames.append(
            Frame(
                step=step,
                block=max(positions) // block_length,
                masked=length - start - len(positions),
                tokens=tuple(tokens),
                logprobs=tuple(_logprobs(position, token) for position, token in tokens),
                set=update.set,
                unset=update.unset,
                content=update.content,
                settled=update.settled,
                finish_reason=reason,
                usage=None
                if reason is None
                else Usage(prompt_tokens=3, completion_tokens=len(data), steps=step, nfe=step),
                **common,  # type: ignore[arg-type]
            )
        )
        if reason is not None:
            break
    return frames


def _logprobs(position: int, token: int) -> PositionLogprobs:
    first, second = (
        TokenLogprob(each, bytes([each]).decode(errors="replace"), bytes([each]), -float(position))
        for each in (token, (token + 1) % 256)
    )
    return PositionLogprobs(position, first, (first, second))


def shuffled_frames(text: str, seed: int = 0, **fields: object) -> list[Frame]:
    """The same in a random order."""
    data = text.encode()
    order = list(range(len(data)))
    random.Random(seed).shuffle(order)
    return frames_of(data, order, **fields)  # type: ignore[arg-type]


class FakeGeneration:
    """Hands out the given frames, one each `pause` seconds; remembers an abort."""

    def __init__(self, frames: Sequence[Frame], params: GenerationParams, pause: float) -> None:
        self.params = params
        self.num_pending = 0
        self.was_aborted = False
        self.has_finished = False
        self._frames = list(frames)
        self._pause = pause

    async def __aiter__(self) -> AsyncIterator[Frame]:
        for frame in self._frames:
            await asyncio.sleep(self._pause)
            yield frame
        self.has_finished = True

    def abort(self) -> None:
        self.was_aborted = True

    def change_last(self, **fields: Any) -> None:
        self._frames[-1] = dataclasses.replace(self._frames[-1], **fields)


class FakeGenerator:
    """Answers request after request with the frames of `text` (or of the next of several texts),
    in an order that the seed decides; or raises `error`."""

    def __init__(
        self,
        text: str | Sequence[str] = "Hello world",
        *,
        frames: Sequence[Frame] | None = None,
        pause: float = 0.0,
        error: Exception | None = None,
        name: str = "fake",
        chat: ChatStyle = PLAIN_CHAT,
    ) -> None:
        self.info = dataclasses.replace(INFO, name=name, chat=chat)
        self.failure: str | None = None
        self.num_slots = 4
        self.forwards = {"captured": 0, "eager": 0}
        self.num_running = 0
        self.num_waiting = 0
        self.frames = frames
        self.texts = [text] if isinstance(text, str) else list(text)
        self.pause = pause
        self.error = error
        self.generations: list[FakeGeneration] = []
        self.messages: list[Message] = []
        self.tools: list[Mapping[str, Any]] = []
        self.enable_thinking: bool | None = None
        self.chat_template_kwargs: Mapping[str, Any] | None = None
        self.prompts: list[Prompt] = []
        self.fills: tuple[str, ...] = ()
        self.fill_reasons: tuple[FinishReason, ...] = ()
        self.observers: list[Observer] = []
        self.compiled: list[Constraint] = []

    def observe(self, observer: Observer) -> None:
        self.observers.append(observer)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        self.messages, self.tools = list(messages), list(tools)
        self.enable_thinking = enable_thinking
        self.chat_template_kwargs = chat_template_kwargs
        ids = "".join(message["content"] for message in messages).encode()
        return list(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        if not all(0 <= each < 256 for each in token_ids):
            raise InvalidRequest("the prompt must have token ids in 0..255", "prompt")
        return bytes(token_ids).decode(errors="replace")

    def compile(self, constraint: Constraint) -> None:
        self.compiled.append(constraint)

    def submit(self, prompt: Prompt, params: GenerationParams) -> FakeGeneration:
        if self.error is not None:
            raise self.error
        if not isinstance(prompt, Infill) and len(prompt) >= self.info.context_length:
            raise ContextLengthExceeded(f"the prompt has {len(prompt)} tokens", "prompt")
        if params.max_tokens > self.info.max_tokens:
            raise InvalidRequest(
                f"max_tokens must be in 1..{self.info.max_tokens}, got {params.max_tokens}",
                "max_tokens",
            )
        params = params.replace(seed=7 if params.seed is None else params.seed)
        text = self.texts[len(self.generations) % len(self.texts)]
        frames = self.frames or shuffled_frames(text, params.seed or 0, stop=params.stop)
        generation = FakeGeneration(
            [_as_asked(frame, params) for frame in frames], params, self.pause
        )
        if isinstance(prompt, Infill) and self.fills:
            generation.change_last(fills=self.fills, fill_reasons=self.fill_reasons)
        self.prompts.append(prompt)
        self.generations.append(generation)
        return generation


def _as_asked(frame: Frame, params: GenerationParams) -> Frame:
    """The frame with so many log-probabilities as were asked for."""
    if params.logprobs is None:
        return dataclasses.replace(frame, logprobs=())
    cut = [each._replace(top=each.top[: params.logprobs]) for each in frame.logprobs]
    return dataclasses.replace(frame, logprobs=tuple(cut))
