"""Asks the questions on standard input with the openai package: loops and its stream helper."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

TASK = json.load(sys.stdin)


def seen(text: str, choice: Any, usage: Any, frames: list[Any]) -> dict[str, Any]:
    """What a user of the package has in the end."""
    return {
        "text": text,
        "finish_reason": choice.finish_reason,
        "completion_tokens": usage.completion_tokens,
        "frames": frames,
    }


def ask_whole(client: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    answer = client.chat.completions.create(**ask)
    choice = answer.choices[0]
    return seen(choice.message.content or "", choice, answer.usage, [])


def ask_stream(client: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    """The loop of the package's own documentation, and what it leaves to the user."""
    text, frames, last, usage = "", [], None, None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options=options):
        usage = chunk.usage or usage
        if not chunk.choices:
            continue
        last = chunk.choices[0]
        text += last.delta.content or ""
        inside = (last.delta.model_extra or {}).get("provider_specific_fields") or {}
        frame = getattr(chunk, "diffusion", None)
        frames += [frame] if frame else inside.get("diffusion", [])
    return seen(text, last, usage, frames)


def ask_helper(client: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    """`.stream()`, which puts the answer together itself."""
    text = ""
    with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as stream:
        for event in stream:
            if event.type == "content.delta":
                text += event.delta
        answer = stream.get_final_completion()
    choice = answer.choices[0]
    assert choice.message.content == text
    return seen(text, choice, answer.usage, [])


def called(function: Any, finish_reason: str) -> dict[str, Any]:
    return {
        "name": function.name,
        "arguments": json.loads(function.arguments),
        "finish_reason": finish_reason,
    }


def call_whole(client: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    choice = client.chat.completions.create(**ask).choices[0]
    [call] = choice.message.tool_calls or []
    return called(call.function, choice.finish_reason)


def call_stream(client: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    name, arguments, reason = "", "", ""
    for chunk in client.chat.completions.create(**ask, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    return {"name": name, "arguments": json.loads(arguments), "finish_reason": reason}


def call_helper(client: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    with client.chat.completions.stream(**ask) as stream:
        choice = stream.get_final_completion().choices[0]
    [call] = choice.message.tool_calls or []
    return called(call.function, choice.finish_reason)


def ask_refused(client: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    try:
        client.chat.completions.create(**{**ask, "temperature": 9})
    except openai.BadRequestError as error:
        has_id = bool(error.request_id)
        return {"status": error.status_code, "message": str(error), "has_request_id": has_id}
    return {"status": 200}


def main() -> None:
    ways = {"whole": ask_whole, "loop": ask_stream, "helper": ask_helper}
    result: dict[str, Any] = {"version": openai.__version__, "answers": {}}
    with openai.OpenAI(base_url=TASK["base_url"], api_key="none", max_retries=0) as client:
        result["models"] = [model.id for model in client.models.list()]
        for style, diffusion in TASK["styles"].items():
            ask = {**TASK["ask"], "extra_body": {"diffusion": diffusion}}
            for way, run in ways.items():
                result["answers"][f"{way}, {style}"] = run(client, ask)
        calls = {"whole": call_whole, "loop": call_stream, "helper": call_helper}
        result["calls"] = {way: run(client, TASK["call"]) for way, run in calls.items()}
        result["refusal"] = ask_refused(client, ask)
    sys.stdout.write(f"\n{json.dumps(result)}\n")


main()
