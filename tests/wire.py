"""Reads streams as the documentation says a client may."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Chunk = dict[str, Any]


def events_of(body: str) -> list[Chunk]:
    """The chunks of a stream that has come to its end."""
    lines = [line for line in body.split("\n") if line]
    assert all(line.startswith(("data: ", ": keep-alive")) for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1] if line.startswith("data: ")]


def content_of(chunks: Sequence[Chunk]) -> str:
    """The pieces of text, one after another: what a stock client shows."""
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(
        choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        for choice in choices
    )


def diffusion_of(chunk: Chunk) -> Chunk | None:
    """The frame in a chunk, wherever it is."""
    if "diffusion" in chunk:
        return dict(chunk["diffusion"])
    if not chunk["choices"]:
        return None
    extra = chunk["choices"][0].get("delta", {}).get("provider_specific_fields")
    return dict(extra["diffusion"][0]) if extra else None


def replay(chunks: Sequence[Chunk]) -> str:
    """What a watcher of one choice shows after the last frame."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        frame = diffusion_of(chunk)
        if frame is None or "set" not in frame:
            continue
        if frame["kind"] == "keyframe":
            texts.clear()
        for position, text, _, _ in frame["set"]:
            texts[position] = text
        for position in frame["unset"]:
            texts.pop(position, None)
    return "".join(texts[position] for position in sorted(texts))
