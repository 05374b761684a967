"""Bytes that are no good request: each gets a 4xx in a moment, and the others are served."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import FakeGenerator
from live import Live, head, serving_live

ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
GOOD = json.dumps(ASK).encode()
URL = "/v1/chat/completions"
# A quiet machine needs a few milliseconds; a busy one may stop for a while.
SOON = 3.0


def sized(data: bytes, *lines: str) -> bytes:
    return head(f"content-length: {len(data)}", *lines) + data


def with_type(kind: str) -> bytes:
    return sized(GOOD).replace(b"application/json", kind.encode())


def chunked(*parts: bytes) -> bytes:
    return head("transfer-encoding: chunked") + b"".join(parts)


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


CASES = {
    "wrong type": (with_type("text/plain"), 415),
    "a form": (with_type("multipart/form-data; boundary=x"), 415),
    "no type": (sized(GOOD).replace(b"content-type: application/json\r\n", b""), 415),
    "stalled chunks": (chunked(chunk(b"{")), 408),
    "stalled before a chunk": (chunked(), 408),
    "shorter than said": (head("content-length: 99") + b"{", 408),
    "10 MB": (sized(b" " * 10_000_000), 413),
    "10 MB in chunks": (chunked(*[chunk(b" " * 100_000)] * 100, chunk(b"")), 413),
    "a bad chunk": (chunked(b"zz\r\n"), 400),
    "two lengths": (head("content-length: 2", "content-length: 3") + b"{}", 400),
    "a negative length": (head("content-length: -1"), 400),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "a huge head": (head("x: " + "y" * 100_000), 400),
    "invalid UTF-8": (sized(b'{"model": "\xff\xfe"}'), 400),
    "UTF-16": (sized(json.dumps(ASK).encode("utf-16")), 400),
    "a lone surrogate": (sized(GOOD.replace(b"hi", b"\\ud800")), 400),
    "nesting": (sized(b"[" * 100_000), 400),
    "nested objects": (sized(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), 400),
    "nested in a field": (
        sized(GOOD[:-1] + b', "metadata": ' + b"[" * 900 + b"]" * 900 + b', "n": 0}'),
        400,
    ),
    "a huge integer": (sized(GOOD[:-1] + b', "max_tokens": 1' + b"0" * 4000 + b"}"), 400),
    "a huger integer": (sized(GOOD[:-1] + b', "seed": 1' + b"0" * 100_000 + b"}"), 400),
    "infinity": (sized(GOOD[:-1] + b', "temperature": Infinity}'), 400),
    "many bad messages": (sized(json.dumps({**ASK, "messages": [5] * 200_000}).encode()), 400),
    "many stop strings": (sized(json.dumps({**ASK, "stop": ["x"] * 10_000}).encode()), 400),
    "twice the same key": (sized(b'{"model": "fake", ' + GOOD[1:]), 400),
    "many keys": (
        sized(json.dumps({**ASK, "diffusion": {str(i): i for i in range(50_000)}}).encode()),
        400,
    ),
    "empty": (sized(b""), 400),
    "null": (sized(b"null"), 400),
}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving_live(FakeGenerator(), body_timeout_seconds=0.4) as live:
        yield live


@pytest.fixture(scope="module")
def neighbour(live: Live) -> Iterator[list[int]]:
    """Somebody who sends good requests all the while: the statuses of the answers."""
    statuses: list[int] = []
    has_ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=live.url) as client:
            while not has_ended.wait(0.02):
                statuses.append(client.post(URL, json=ASK, timeout=10).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    yield statuses
    has_ended.set()
    thread.join(10)


def status_of(live: Live, data: bytes) -> int:
    """The status of the answer to raw bytes; the client keeps its side open."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as client:
        client.sendall(data)
        line = b""
        while b"\r\n" not in line and (part := client.recv(4096)):
            line += part
    return int(line.split()[1])


@pytest.mark.parametrize("name", CASES)
def test_bad_bytes_are_a_4xx_in_a_moment_while_others_are_served(
    live: Live, neighbour: list[int], name: str
):
    data, status = CASES[name]
    served = len(neighbour)
    started = time.monotonic()
    assert status_of(live, data) == status
    assert time.monotonic() - started < SOON
    while len(neighbour) == served:
        time.sleep(0.01)
        assert time.monotonic() - started < 2 * SOON
    assert set(neighbour) == {200}


def test_damaged_requests_never_become_a_defect(live: Live, neighbour: list[int]):
    dice = random.Random(0)
    for _ in range(60):
        body = bytearray(GOOD)
        for _ in range(dice.randrange(1, 6)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        assert status_of(live, sized(bytes(body))) in (200, 400, 404)
    assert set(neighbour) == {200}
