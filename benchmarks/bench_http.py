"""HTTP, scheduling and streaming: 16 streams at once against the engine alone, frames off and on.

Server, engine and clients share this process and its interpreter lock, and talk over the loopback
address only; the clients read bytes and parse nothing. So the overhead is what a machine pays that
has no core to spare for HTTP.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from diffusiongpt.engine import Engine, EngineWorker, GenerationParams
from diffusiongpt.server.app import create_app
from diffusiongpt.server.log import configure_logging

from measure import MASK, STOP, in_turn, parse_arguments, ratio, report, write_random_model

TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def main() -> None:
    """Measure and report."""
    configure_logging("warning")
    options = parse_arguments(__doc__, streams=16, length=192, block=8)
    length = 16 if options.quick else options.length
    folder = write_random_model(
        options.quick, options.block, **({"vocab_size": 512} if options.quick else {})
    )
    write_tokenizer(folder)
    alone, served = (
        Engine.from_pretrained(folder, name="model", prefix_cache_bytes=0, device=options.device)
        for _ in range(2)
    )
    asks = [ask(index, length) for index in range(options.streams)]
    with serving(served) as port:
        seconds = in_turn(
            options.repeats,
            engine=partial(run_engine, alone, asks),
            frames_off=partial(run_streams, port, asks, "off"),
            frames_on=partial(run_streams, port, asks, "delta"),
        )
        received = {frames: run_streams(port, asks, frames) for frames in ("off", "delta")}
    result = {
        "streams": options.streams,
        "new_tokens_each": length,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "bytes_received": received,
        "times_the_engine": {
            name: ratio(seconds[name], seconds["engine"]) for name in ("frames_off", "frames_on")
        },
    }
    report(options, "http", "<= 1.03 times the engine with frames off, <= 1.10 on", result)


def ask(index: int, length: int) -> dict[str, Any]:
    """The body of one request, frames aside."""
    return {
        "model": "model",
        "messages": [{"role": "user", "content": f"tell me story number {index}"}],
        "max_tokens": length,
        "seed": index,
        "stream": True,
        "diffusion": {"policy": "confidence", "steps": length // 2},
    }


def run_engine(engine: Engine, asks: list[dict[str, Any]]) -> None:
    """The same requests without a server."""
    for each in asks:
        params = GenerationParams(
            max_tokens=each["max_tokens"], seed=each["seed"], **each["diffusion"]
        )
        engine.add(engine.prepare(engine.encode_chat(each["messages"]), params))
    while not engine.is_idle:
        engine.step()


def run_streams(port: int, asks: list[dict[str, Any]], frames: str) -> int:
    """Ask all at once and read to the end; bytes received."""

    async def run() -> int:
        bodies = [{**each, "diffusion": {**each["diffusion"], "frames": frames}} for each in asks]
        return sum(await asyncio.gather(*(read_stream(port, body) for body in bodies)))

    return asyncio.run(run())


async def read_stream(port: int, body: dict[str, Any]) -> int:
    """One request over a connection of its own; bytes received."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    answer = await reader.read(-1)
    writer.close()
    if b"200 OK" not in answer[:20] or b"data: [DONE]" not in answer[-40:]:
        raise RuntimeError(f"the stream went wrong: {answer[:300]!r} ... {answer[-100:]!r}")
    return len(answer)


@contextmanager
def serving(engine: Engine) -> Iterator[int]:
    """The port of a server around the engine."""
    worker = EngineWorker(engine)
    worker.start()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(worker), log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        worker.stop()


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer whose every id has a text, so that random tokens are streamed; and
    no answer ends early."""
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text())
    config["diffusion"]["never_emit_token_ids"] = [0, 1, 2, STOP, MASK]
    config_path.write_text(json.dumps(config))
    special = ["<|pad|>", "<|bos|>", "<|unused|>", "<|end|>", "<|mask|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("".join(each) for size in (2, 3) for each in product(ascii_lowercase, repeat=size))
    texts = [*special, *letters, *words][: config["vocab_size"]]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


if __name__ == "__main__":
    main()
