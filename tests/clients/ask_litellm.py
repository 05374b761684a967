"""Asks the questions on standard input with LiteLLM, under two of its providers."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it reads a file from the network

import litellm

TASK = json.load(sys.stdin)


def ask_whole(ask: dict[str, Any]) -> dict[str, Any]:
    answer = litellm.completion(**ask)
    choice = answer.choices[0]
    return {
        "text": choice.message.content or "",
        "finish_reason": choice.finish_reason,
        "completion_tokens": answer.usage.completion_tokens,
        "frames": [],
    }


def ask_stream(ask: dict[str, Any]) -> dict[str, Any]:
    text, reason, tokens, frames = "", None, None, []
    options = {"include_usage": True}
    for chunk in litellm.completion(**ask, stream=True, stream_options=options):
        if getattr(chunk, "usage", None):
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            fields = getattr(choice.delta, "provider_specific_fields", None) or {}
            frames += fields.get("diffusion", [])
    return {"text": text, "finish_reason": reason, "completion_tokens": tokens, "frames": frames}


def call_whole(ask: dict[str, Any]) -> dict[str, Any]:
    choice = litellm.completion(**ask).choices[0]
    [call] = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    return {
        "name": call.function.name,
        "arguments": arguments,
        "finish_reason": choice.finish_reason,
    }


def call_stream(ask: dict[str, Any]) -> dict[str, Any]:
    name, arguments, reason = "", "", ""
    for chunk in litellm.completion(**ask, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    return {"name": name, "arguments": json.loads(arguments), "finish_reason": reason}


def main() -> None:
    result: dict[str, Any] = {"version": version("litellm"), "answers": {}, "calls": {}}
    where = {"api_base": TASK["base_url"], "api_key": "none", "num_retries": 0}
    ask = {**TASK["ask"], **where}
    for provider in ("openai", "hosted_vllm"):
        for style, diffusion in TASK["styles"].items():
            model = f"{provider}/{ask['model']}"
            full = {**ask, "model": model, "extra_body": {"diffusion": diffusion}}
            result["answers"][f"{provider} whole, {style}"] = ask_whole(full)
            result["answers"][f"{provider} loop, {style}"] = ask_stream(full)
        call = {**TASK["call"], **where, "model": f"{provider}/{ask['model']}"}
        result["calls"][f"{provider} whole"] = call_whole(call)
        result["calls"][f"{provider} loop"] = call_stream(call)
    try:
        litellm.completion(**{**full, "model": f"openai/{ask['model']}", "temperature": 9})
    except litellm.BadRequestError as error:
        result["refusal"] = {"status": error.status_code, "message": str(error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


main()
