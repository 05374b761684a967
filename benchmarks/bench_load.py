"""Many streams at once against `diffusiongpt serve`, some clients leaving, some slow.

Nothing may be lost and no slot may leak; the times to the first frame are the result.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from diffusiongpt.engine.frame import Change
from diffusiongpt.engine.replay import Replay

from measure import parse_arguments, report

LEAVING, SLOW = 0.2, 0.1
PAUSE_SECONDS = 0.02
NAME = "loaded"


@dataclass
class Client:
    """One reader of a stream: what it got, and whether it left on purpose.

    Attributes:
        leaves_after: chunks after which it goes away, or None. pause: seconds after each chunk.
    """

    seed: int
    leaves_after: int | None
    pause: float
    content: str = ""
    first_frame_s: float | None = None
    is_complete: bool = False
    replay: Replay = field(default_factory=Replay)

    async def run(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        """Read a stream to its end, or leave it."""
        started = time.perf_counter()
        ask = body | {"seed": self.seed}
        async with client.stream("POST", "/v1/chat/completions", json=ask) as answer:
            answer.raise_for_status()
            num_chunks = 0
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    self.is_complete = True
                    return
                self._read(json.loads(line[6:]), time.perf_counter() - started)
                num_chunks += 1
                if num_chunks == self.leaves_after:
                    return
                await asyncio.sleep(self.pause)

    def _read(self, chunk: dict[str, Any], seconds: float) -> None:
        self.content += chunk["choices"][0]["delta"].get("content") or ""
        frame = chunk.get("diffusion")
        if frame is None:
            return
        if frame["kind"] == "keyframe":
            self.replay = Replay()
        if "set" in frame:
            self.first_frame_s = seconds if self.first_frame_s is None else self.first_frame_s
            self.replay.apply((Change(*each) for each in frame["set"]), frame["unset"])


def make_clients(number: int) -> list[Client]:
    """The first fifth leaves somewhere on the way, the next tenth is slow."""
    dice = random.Random(0)
    num_leaving, num_slow = round(LEAVING * number), round(SLOW * number)
    return [
        Client(
            seed=index,
            leaves_after=dice.randrange(1, 20) if index < num_leaving else None,
            pause=PAUSE_SECONDS if num_leaving <= index < num_leaving + num_slow else 0.0,
        )
        for index in range(number)
    ]


async def run_all(url: str, clients: list[Client], max_tokens: int) -> None:
    """All clients at once."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Tell me a story about a cat."}],
        "max_tokens": max_tokens,
        "stream": True,
        "diffusion": {"frames": "delta"},
    }
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await asyncio.gather(*(each.run(client, body) for each in clients))


def read_meters(url: str) -> Counter[str]:
    """The engine's meters, without labels; those of one name are added up."""
    meters: Counter[str] = Counter()
    pattern = r"^diffusiongpt_(\w+)(?:\{.*\})? ([\d.e+-]+)$"
    for name, value in re.findall(pattern, httpx.get(f"{url}/metrics").text, re.MULTILINE):
        meters[name] += float(value)  # type: ignore[assignment]
    return meters


def wait_until(url: str, is_true: Any, seconds: float = 120.0) -> bool:
    """Whether something about the server comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if is_true(url):
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


def is_idle(url: str) -> bool:
    """Whether no slot is held and nobody waits."""
    meters = read_meters(url)
    return not meters["slots_running"] and not meters["queue_requests"]


def start_server(
    model: str | None, num_slots: int, device: str
) -> tuple[subprocess.Popen[bytes], str]:
    """`diffusiongpt serve` on a free port, ready, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    flags = ["--port", str(port), "--name", NAME, "--num-slots", str(num_slots)]
    flags += [
        "--log-level",
        "warning",
        "--device",
        device,
        *([] if model is None else ["--model", model]),
    ]
    server = subprocess.Popen([sys.executable, "-m", "diffusiongpt.cli", "serve", *flags])
    url = f"http://127.0.0.1:{port}"
    if not wait_until(url, lambda url: httpx.get(f"{url}/ready").status_code == 200):
        server.kill()
        raise SystemExit("the server did not become ready")
    return server, url


def measure(url: str, clients: list[Client], max_tokens: int) -> dict[str, Any]:
    """Run the clients and look at what they got and at what the server has left."""
    started = time.perf_counter()
    asyncio.run(run_all(url, clients, max_tokens))
    seconds = time.perf_counter() - started
    has_emptied = wait_until(url, is_idle, 20)
    meters = read_meters(url)
    staying = [each for each in clients if each.leaves_after is None]
    times = sorted(each.first_frame_s * 1000 for each in clients if each.first_frame_s is not None)
    return {
        "streams": len(clients),
        "seconds": seconds,
        "incomplete": sum(not each.is_complete for each in staying),
        "texts_unlike_their_frames": sum(each.content != each.replay.text for each in staying),
        "slots_leaked": 0 if has_emptied else meters["slots_running"],
        "generations_unaccounted": len(clients) - meters["generations_total"],
        "first_frame_ms": {
            "p50": statistics.median(times),
            "p95": times[min(int(0.95 * len(times)), len(times) - 1)],
        },
    }


def main() -> None:
    """Measure and report; a loss is an error."""
    options = parse_arguments(__doc__, takes_model=True, streams=64, max_tokens=128)
    number, max_tokens = (20, 32) if options.quick else (options.streams, options.max_tokens)
    server, url = start_server(options.model, number, options.device)
    try:
        result = measure(url, make_clients(number), max_tokens)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    report(options, "load", "nothing lost, no slot leaked", result)
    losses = ("incomplete", "texts_unlike_their_frames", "slots_leaked", "generations_unaccounted")
    if any(result[name] for name in losses):
        raise SystemExit("something was lost")


if __name__ == "__main__":
    main()
