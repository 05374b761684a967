"""Forced calls of varied tools at temperature 1: what share has valid arguments, streamed too.

Every tool of tools.json is called again and again, half of the times by its name and half of the
times as one of two that are on offer. A call counts as valid when the answer is calls and nothing
else, ends for that reason, and all arguments are valid against their schemas (jsonschema).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from diffusiongpt.engine import Engine
from diffusiongpt.engine.worker import EngineWorker
from diffusiongpt.server.app import create_app
from diffusiongpt.server.log import configure_logging
from diffusiongpt.server.settings import Settings

from measure import parse_arguments, report

TOOLS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "tools.json").read_text())
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
CONCURRENT = 16
# What is on offer beside a tool is small, so that a prompt fits the bundled model's context.
SMALL = [tool for tool in TOOLS if len(json.dumps(tool)) < 180]


def make_asks(number: int, max_tokens: int) -> list[dict[str, Any]]:
    """So many requests; the odd ones name their tool, every fourth is streamed."""
    asks = []
    for index in range(number):
        tool = TOOLS[index % len(TOOLS)]
        is_named = (index // len(TOOLS)) % 2 == 0
        name = tool["function"]["name"]
        other = SMALL[index % len(SMALL)]
        tools = [tool] if is_named or other is tool else [tool, other]
        asks.append(
            {
                "model": "tools",
                "messages": [{"role": "user", "content": f"Please {name}."}],
                "tools": tools,
                "tool_choice": {"type": "function", "function": {"name": name}}
                if is_named
                else "required",
                "temperature": 1.0,
                "seed": index,
                "max_tokens": max_tokens,
                "stream": index % 4 == 3,
            }
        )
    return asks


def read_stream(text: str) -> dict[str, Any]:
    """The choice that the deltas of a stream add up to."""
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    reason = None
    for line in text.split("\n"):
        if not line.startswith("data: {"):
            continue
        choice = json.loads(line[6:])["choices"][0]
        delta, reason = choice["delta"], choice["finish_reason"]
        if delta.get("content"):
            message["content"] = (message["content"] or "") + delta["content"]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                message["tool_calls"].append({"function": {"name": "", "arguments": ""}})
            function = message["tool_calls"][call["index"]]["function"]
            function["name"] += call["function"].get("name", "")
            function["arguments"] += call["function"]["arguments"]
    return {"message": message, "finish_reason": reason}


def what_is_wrong(choice: dict[str, Any], tools: list[dict[str, Any]]) -> str | None:
    """None for a valid answer."""
    message = choice["message"]
    if choice["finish_reason"] != "tool_calls":
        return f"finish_reason {choice['finish_reason']}"
    if message["content"] is not None or not message["tool_calls"]:
        return "text beside the calls" if message["content"] else "no call"
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters", NO_ARGUMENTS) for tool in tools
    }
    for call in message["tool_calls"]:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            return "arguments that are no JSON"
        schema = schemas[call["function"]["name"]]
        if not Draft202012Validator(schema).is_valid(arguments):
            return "arguments that are not valid"
    return None


async def ask_all(
    worker: EngineWorker, asks: list[dict[str, Any]]
) -> list[tuple[str | None, dict[str, Any] | None]]:
    """What is wrong with each answer, and the answer's choice."""
    gate = asyncio.Semaphore(CONCURRENT)
    transport = httpx.ASGITransport(app=create_app(worker, Settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://bench") as client:

        async def one(ask: dict[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
            async with gate:
                answer = await client.post("/v1/chat/completions", json=ask, timeout=300)
            if answer.status_code != 200:
                return f"{answer.status_code}: {answer.json()['error']['message']}", None
            choice = read_stream(answer.text) if ask["stream"] else answer.json()["choices"][0]
            return what_is_wrong(choice, ask["tools"]), choice

        return await asyncio.gather(*(one(ask) for ask in asks))


def main() -> None:
    """Measure and report; an invalid call is an error."""
    options = parse_arguments(__doc__, takes_model=True, calls=200, max_tokens=160)
    configure_logging("warning")
    number = 4 if options.quick else options.calls
    worker = EngineWorker(
        Engine.from_pretrained(options.model, name="tools", device=options.device)
    )
    worker.start()
    started = time.perf_counter()
    done = asyncio.run(ask_all(worker, make_asks(number, options.max_tokens)))
    seconds = time.perf_counter() - started
    worker.stop()
    faults = Counter(fault for fault, _ in done if fault is not None)
    calls = [call for _, choice in done if choice for call in choice["message"]["tool_calls"]]
    result = {
        "answers": len(done),
        "tools": len(TOOLS),
        "calls": len(calls),
        "valid": 1.0 - faults.total() / len(done),
        "faults": dict(faults),
        "seconds": seconds,
    }
    report(options, "tools", "every forced call is valid", result)
    if faults:
        raise SystemExit("not every call is valid")


if __name__ == "__main__":
    main()
