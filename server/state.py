"""Whether the server takes requests."""

from __future__ import annotations

from diffusiongpt.server.errors import unavailable


class ServerState:
    """Shared by the routes and the signal handler."""

    def __init__(self) -> None:
        self.is_draining = False

    def refuse_while_draining(self) -> None:
        """Raise a 503 once the server is about to stop."""
        if self.is_draining:
            raise unavailable("the server is stopping; running answers are finished first")
