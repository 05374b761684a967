"""Whether the server takes requests, and how long those that run may go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from diffusiongpt.server.errors import unavailable


class ServerState:
    """Shared by the routes, the loader of models and the signal handler.

    Attributes:
        is_loading: models are on their way. is_draining: a stop signal has come.
        is_over: the time that running answers had to end has passed, too.
    """

    def __init__(self, *, is_loading: bool = False) -> None:
        self.is_loading = is_loading
        self.is_draining = False
        self.is_over = False
        self._deadlines: set[asyncio.Timeout] = set()

    @property
    def name(self) -> str:
        """What the server is doing, in one word."""
        if self.is_draining:
            return "draining"
        return "loading" if self.is_loading else "ok"

    def refuse_unless_serving(self) -> None:
        """Raise a 503 before the models are loaded and once the server is about to stop."""
        if self.is_draining:
            raise unavailable("the server is stopping; running answers are finished first")
        if self.is_loading:
            raise unavailable("the model is being loaded; try again in a moment")

    @asynccontextmanager
    async def deadline(self, seconds: float) -> AsyncIterator[asyncio.Timeout]:
        """Bound what runs inside by `seconds`, and by the end of the drain."""
        async with asyncio.timeout(0 if self.is_over else seconds) as timeout:
            self._deadlines.add(timeout)
            try:
                yield timeout
            finally:
                self._deadlines.discard(timeout)

    def end_all(self) -> None:
        """End what still runs; called in the event loop when the drain has taken too long."""
        self.is_over = True
        now = asyncio.get_running_loop().time()
        for timeout in self._deadlines:
            if not timeout.expired():
                timeout.reschedule(now)
