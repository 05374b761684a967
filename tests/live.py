"""A server on a free loopback port, in a thread of the tests, and clients without manners."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusiongpt.server.app import create_app
from diffusiongpt.server.generator import Generator
from diffusiongpt.server.models import Models
from diffusiongpt.server.run import make_server
from diffusiongpt.server.settings import Settings
from diffusiongpt.server.state import ServerState


class Live:
    """A running server."""

    def __init__(self, port: int, state: ServerState, thread: threading.Thread) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.state = state
        self.thread = thread


@contextmanager
def serving_live(
    models: Models | Generator, *, send_buffer: int | None = None, **settings: Any
) -> Iterator[Live]:
    """Serve until the block ends; `send_buffer` makes the system's own buffer small, in bytes."""
    state = ServerState()
    chosen = Settings(**settings)
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = make_server(create_app(models, chosen, state), chosen, state)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    assert wait_for(lambda: server.started)
    live = Live(listener.getsockname()[1], state, thread)
    try:
        yield live
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def open_request(port: int, body: object, *, receive_buffer: int | None = None) -> socket.socket:
    """A connection that has sent a chat request and has read nothing."""
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(20)
    client.connect(("127.0.0.1", port))
    data = json.dumps(body).encode()
    client.sendall(head(f"content-length: {len(data)}") + data)
    return client


def head(*lines: str, method: str = "POST", path: str = "/v1/chat/completions") -> bytes:
    """The head of a request with a JSON body."""
    fixed = (f"{method} {path} HTTP/1.1", "host: test", "content-type: application/json")
    return "\r\n".join((*fixed, *lines, "", "")).encode()


def read_all(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    data = b""
    while part := client.recv(65536):
        data += part
    return data


def read_answer(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an answer with a content-length."""
    with client.makefile("rb") as file:
        status = int(file.readline().split()[1])
        length = 0
        while (line := file.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(file.read(length))
