"""Who comes in: one place for keys, for what runs before and after serving, and for fairness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from diffusiongpt.server.auth import ApiKeys
from diffusiongpt.server.errors import ApiError, error_response, too_many
from diffusiongpt.server.state import ServerState

# What a probe asks and what a browser loads before anybody could give it a key.
_OPEN = frozenset({"/", "/health", "/ready"})
_OPEN_FOLDER = "/static/"
_API = "/v1/"


class Gate:
    """Lets a request in, or answers it: 401 without a key, 503 while not serving, 429 for a key
    that has too many requests running already.

    Every path needs a key but the few that are open, so that a new route is closed by itself.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, state: ServerState, max_concurrent: int | None
    ) -> None:
        self._app = app
        self._keys = keys
        self._state = state
        self._max_concurrent = max_concurrent
        self._running: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path in _OPEN or path.startswith(_OPEN_FOLDER):
            await self._app(scope, receive, send)
            return
        try:
            key = self._keys.check(Headers(scope=scope).get("authorization"))
            if path.startswith(_API):
                self._state.refuse_unless_serving()
            with self._counting(key if scope["method"] == "POST" else None):
                await self._app(scope, receive, send)
        except ApiError as error:
            # Its own refusals; those of the routes are answered further in.
            await error_response(error, scope)(scope, receive, send)

    @contextmanager
    def _counting(self, key: int | None) -> Iterator[None]:
        """Count a request that asks for work (a key), and refuse it if the key has too many."""
        if key is None or self._max_concurrent is None:
            yield
            return
        if self._running[key] >= self._max_concurrent:
            raise too_many(
                f"{self._running[key]} requests of this key are running, the most that may; "
                "try again when one has ended",
                "too_many_concurrent_requests",
            )
        self._running[key] += 1
        try:
            yield
        finally:
            self._running[key] -= 1
