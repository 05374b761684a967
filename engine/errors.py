"""What can go wrong in the engine, as exceptions whose message is one sentence for the user.

EngineError
├── LoadError               a model folder that does not fit; nothing has started
├── InvalidRequest          a request that cannot be honoured; no slot was taken
│   └── ContextLengthExceeded
├── QueueFull               too many requests wait already
└── EngineFailure           a tick failed, or the engine has stopped
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""


class LoadError(EngineError):
    """The model folder cannot be served; the message says what was found and what is accepted."""


class InvalidRequest(EngineError, ValueError):
    """A request that cannot be honoured.

    Attributes:
        param: name of the offending field of `GenerationParams` (or "prompt"), if there is one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the model's context."""


class QueueFull(EngineError):
    """The bounded queue of waiting requests is full; try again later."""


class EngineFailure(EngineError):
    """The engine could not finish a request for a reason of its own."""
