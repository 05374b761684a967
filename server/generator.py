"""The part of the engine that the server uses; tests hand in a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from diffusiongpt.engine.canvas import Infill
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
    def num_slots(self) -> int: ...

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every frame from now on."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a chat; may raise InvalidRequest."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; may raise InvalidRequest."""
        ...

    def submit(self, prompt: Prompt, params: GenerationParams) -> Generation:
        """Start a request; raises an EngineError before anything has started."""
        ...
