"""One connection of a client: uvicorn's own, and a way to close it at once."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from diffusiongpt.server.limits import ABORT_CONNECTION

# What a client that has left may still have to read before its connection is forgotten.
_LINGER_SECONDS = 30.0


class Connection(H11Protocol):
    """Can be cut off in the middle of an answer that nobody reads.

    Closing waits until everything written has been read, which a stalled reader never does.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the way out where `Limits` finds it, in every request's "state"."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT_CONNECTION: transport.abort}

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and do not wait for ever for its last answer to be read."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
