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


def main() -> None:
    result: dict[str, Any] = {"version": version("litellm"), "answers": {}}
    ask = {**TASK["ask"], "api_base": TASK["base_url"], "api_key": "none", "num_retries": 0}
    for provider in ("openai", "hosted_vllm"):
        for style, diffusion in TASK["styles"].items():
            model = f"{provider}/{ask['model']}"
            full = {**ask, "model": model, "extra_body": {"diffusion": diffusion}}
            result["answers"][f"{provider} whole, {style}"] = ask_whole(full)
            result["answers"][f"{provider} loop, {style}"] = ask_stream(full)
    try:
        litellm.completion(**{**full, "model": f"openai/{ask['model']}", "temperature": 9})
    except litellm.BadRequestError as error:
        result["refusal"] = {"status": error.status_code, "message": str(error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


main()
