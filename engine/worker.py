"""The thread that turns the engine's loop, and the way from it to asyncio and back.

Only this thread touches the engine's tensors. Requests are checked in the caller's thread, so
that what cannot be honoured is refused before anything starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from diffusiongpt.engine.chat import Message
from diffusiongpt.engine.completion import Prompt
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import EngineFailure, QueueFull
from diffusiongpt.engine.frame import Frame
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.observer import CompiledOrder, Observer
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.report import last_frame
from diffusiongpt.engine.request import Request


class Generation:
    """One running request: an async iterator of its frames, ending with the last one."""

    def __init__(self, request: Request, abort: Callable[[str], None]) -> None:
        self.request = request
        self.request_id = request.request_id
        self.submitted_at = time.monotonic()
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        # Bounded by nature: a completion has at most one frame per forward, and two to begin.
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self._iterate()

    def abort(self) -> None:
        """End the request; idempotent, and fine after its end."""
        self._abort(self.request_id)

    def put(self, frame: Frame) -> None:
        """Hand over a frame; called in the event loop."""
        self._frames.put_nowait(frame)

    @property
    def params(self) -> GenerationParams:
        """The request's parameters, defaults filled in and the seed drawn."""
        return self.request.params

    @property
    def num_pending(self) -> int:
        """Frames that wait to be read."""
        return self._frames.qsize()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that reads this generation."""
        return self._loop

    async def _iterate(self) -> AsyncIterator[Frame]:
        while True:
            frame = await self._frames.get()
            yield frame
            if frame.finish_reason is not None:
                return


class EngineWorker:
    """Turns an engine in a thread of its own; `submit` is called from asyncio."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._generations: dict[str, Generation] = {}
        self._observers: list[Observer] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._crash: str | None = None

    @property
    def info(self) -> ModelInfo:
        """The facts about the model."""
        return self._engine.info

    @property
    def failure(self) -> str | None:
        """Why the engine cannot serve any more, in a sentence, or None."""
        if broken := self._engine.failure or self._crash:
            return broken
        if self._stopping or not self._thread.is_alive():
            return "the engine is not running"
        return None

    @property
    def forwards(self) -> dict[str, int]:
        """Forwards so far by how they ran: replayed, or eagerly and why."""
        return self._engine.forwards

    @property
    def num_slots(self) -> int:
        """Requests that can hold a slot at once."""
        return self._engine.config.num_slots

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return self._engine.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return max(len(self._generations) - self._engine.num_running, 0)

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every frame from now on."""
        self._observers.append(observer)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End all requests and the thread."""
        self._stopping = True
        self._commands.put(_wake_up)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens spelled out in it are ordinary text."""
        return self._engine.encode(text)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a chat, ready for the assistant's answer."""
        return self._engine.encode_chat(
            messages,
            tools=tools,
            enable_thinking=enable_thinking,
            chat_template_kwargs=chat_template_kwargs,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; special tokens have none."""
        return self._engine.decode(token_ids)

    def compile(self, constraint: Constraint) -> None:
        """Get a constraint ready ahead of its requests, in any thread; raises InvalidRequest."""
        begun = time.perf_counter()
        order: CompiledOrder | None = None
        try:
            language = self._engine.compile(constraint)
            order = "left_to_right" if language.is_in_order else "any"
        finally:
            seconds = time.perf_counter() - begun
            for observer in self._observers:
                observer.note_compile(constraint.kind, seconds, order)

    def submit(self, prompt: Prompt, params: GenerationParams) -> Generation:
        """Start a request.

        Raises:
            InvalidRequest, QueueFull, EngineFailure: nothing was started.
        """
        if self.failure is not None:
            raise EngineFailure(self.failure)
        request = self._engine.prepare(prompt, params)
        limit = self._engine.config.num_slots + self._engine.config.max_waiting
        if len(self._generations) >= limit:
            raise QueueFull(f"{limit} requests run or wait already; try again later")
        generation = Generation(request, self._abort)
        self._generations[request.request_id] = generation
        self._commands.put(lambda: self._add(request))
        return generation

    def _abort(self, request_id: str) -> None:
        if request_id in self._generations:
            self._commands.put(lambda: self._engine.abort(request_id))

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except (QueueFull, EngineFailure) as error:
            self._send([last_frame(request, str(error))])

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey()
                self._send(self._engine.step())
        except Exception as error:
            # A defect of ours: say so to everyone who waits, and to /health, and stop.
            self._crash = f"the engine's loop ended: {type(error).__name__}: {error}"
        self._stopping = True
        self._end_all(self._crash or "the engine has stopped")

    def _obey(self) -> None:
        """Carry out what was asked; waits only while the engine has nothing to do."""
        if self._engine.is_idle:
            self._commands.get()()
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()

    def _send(self, frames: Sequence[Frame]) -> None:
        """Hand a tick's frames over, one wake-up per event loop and not per frame."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Frame]]] = {}
        for frame in frames:
            generation = self._generations.get(frame.request_id)
            if generation is None:
                continue
            for observer in self._observers:
                observer.note_frame(frame, time.monotonic() - generation.submitted_at)
            by_loop.setdefault(generation.loop, []).append((generation, frame))
            if frame.finish_reason is not None:
                del self._generations[frame.request_id]
        for loop, deliveries in by_loop.items():
            # A closed loop has nobody left who could read.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, deliveries)

    def _end_all(self, message: str) -> None:
        """Send a last frame to every request that is still waiting for one."""
        self._send([last_frame(each.request, message) for each in list(self._generations.values())])


def _wake_up() -> None:
    """Ends a wait for commands."""


def _deliver(deliveries: Sequence[tuple[Generation, Frame]]) -> None:
    for generation, frame in deliveries:
        generation.put(frame)
