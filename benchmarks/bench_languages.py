"""Languages that are meant to take long, over HTTP: the processor time of each until it is refused
or answered, and how long others wait for /health meanwhile.

Those of `hostile.py`, and `--random` many that are put together at random. Server and client share
this process and its interpreter lock, so that nobody waits less than others would.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import Any

from diffusiongpt.engine import Engine
from diffusiongpt.server.log import configure_logging

from bench_http import serving, write_tokenizer
from hostile import hostile_languages, random_language
from measure import parse_arguments, report, write_random_model

_FIELDS = {"json_schema": "json", "regex": "regex", "choice": "choice", "grammar": "grammar"}
_NUM_TOLD = 12
_PAUSE_SECONDS = 0.005


def main() -> None:
    """Measure and report."""
    configure_logging("error")
    options = parse_arguments(__doc__, takes_model=True, random=0, first=0)
    folder = options.model
    if options.quick:
        folder = write_random_model(True, vocab_size=512)
        write_tokenizer(folder)
    engine = Engine.from_pretrained(folder, name="model", device=options.device)
    asked = dict(list(hostile_languages().items())[: 2 if options.quick else None])
    for seed in range(options.first, options.first + options.random):
        asked[f"random: {seed}"] = random_language(seed)
    with serving(engine) as port:
        told = asyncio.run(ask_all(port, asked))
    slowest = sorted(told, key=lambda each: -each["processor_seconds"])
    result = {
        "languages": len(told),
        "answered": sum(each["status"] == 200 for each in told),
        "wrong": [each for each in told if each["status"] not in (200, 400)],
        "processor_seconds": spread([each["processor_seconds"] for each in told]),
        "health_seconds": spread([each["health_seconds"] for each in told]),
        "slowest": slowest[:_NUM_TOLD],
    }
    report(options, "languages", "none takes a second, none is an error of the server", result)


def spread(values: list[float]) -> dict[str, float]:
    """The median and the most."""
    return {"median": statistics.median(values), "max": max(values)}


async def ask_all(port: int, asked: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """What each language cost, one after another."""
    await ask(port, "regex", "a|b")  # what is made once is made
    told = []
    for name, (kind, source) in asked.items():
        probe = asyncio.create_task(wait_for_health(port))
        began = time.process_time()
        status, answer = await ask(port, kind, source)
        seconds = time.process_time() - began
        probe.cancel()
        waits = (await asyncio.gather(probe, return_exceptions=True))[0]
        sentence = json.loads(answer).get("error", {}).get("message", "")
        told.append(
            {
                "language": name,
                "status": status,
                "processor_seconds": seconds,
                "health_seconds": waits,
                "sentence": sentence[:160],
            }
        )
    return told


async def wait_for_health(port: int) -> float:
    """The longest that /health took until this is cancelled."""
    longest, began = 0.0, time.perf_counter()
    try:
        while True:
            began = time.perf_counter()
            await request(port, "GET /health", b"")
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_SECONDS)
    except asyncio.CancelledError:
        return max(longest, time.perf_counter() - began - _PAUSE_SECONDS)


async def ask(port: int, kind: str, source: str) -> tuple[int, bytes]:
    """Ask for a text of a language; the status and the body."""
    value = json.loads(source) if kind == "choice" else source
    body = {
        "model": "model",
        "prompt": "a",
        "max_tokens": 32,
        "structured_outputs": {_FIELDS[kind]: value},
    }
    return await request(port, "POST /v1/completions", json.dumps(body).encode())


async def request(port: int, line: str, data: bytes) -> tuple[int, bytes]:
    """One request over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    answer = await reader.read(-1)
    writer.close()
    head_of_answer, _, body = answer.partition(b"\r\n\r\n")
    return int(head_of_answer.split(b" ", 2)[1]), body


if __name__ == "__main__":
    main()
