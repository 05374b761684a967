"""Asks the questions on standard input with LangChain's ChatOpenAI."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import openai
from langchain_openai import ChatOpenAI

TASK = json.load(sys.stdin)
ASK = TASK["ask"]
MESSAGES = [(message["role"], message["content"]) for message in ASK["messages"]]


def make_model(ask: dict[str, Any] = ASK, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=ask["model"],
        base_url=TASK["base_url"],
        api_key="none",
        seed=ask["seed"],
        max_completion_tokens=ask["max_tokens"],
        max_retries=0,
        stream_usage=True,
        **fields,
    )


def seen(message: Any) -> dict[str, Any]:
    return {
        "text": message.text if isinstance(message.text, str) else message.text(),
        "finish_reason": message.response_metadata["finish_reason"],
        "completion_tokens": message.usage_metadata["output_tokens"],
        "frames": [],
    }


def ask_calls() -> dict[str, Any]:
    """A call that must be made, whole and put together from a stream."""
    ask = TASK["call"]
    name = ask["tool_choice"]["function"]["name"]
    model = make_model(ask).bind_tools(ask["tools"], tool_choice=name)
    messages = [(message["role"], message["content"]) for message in ask["messages"]]
    whole = None
    for part in model.stream(messages):
        whole = part if whole is None else whole + part
    return {"whole": called(model.invoke(messages)), "loop": called(whole)}


def called(message: Any) -> dict[str, Any]:
    [call] = message.tool_calls
    reason = message.response_metadata["finish_reason"]
    return {"name": call["name"], "arguments": call["args"], "finish_reason": reason}


def main() -> None:
    result: dict[str, Any] = {"version": version("langchain-openai"), "answers": {}}
    for style, diffusion in TASK["styles"].items():
        model = make_model(extra_body={"diffusion": diffusion})
        result["answers"][f"whole, {style}"] = seen(model.invoke(MESSAGES))
        whole = None
        for part in model.stream(MESSAGES):
            whole = part if whole is None else whole + part
        result["answers"][f"loop, {style}"] = seen(whole)
    result["calls"] = ask_calls()
    try:
        make_model(temperature=9).invoke(MESSAGES)
    except openai.BadRequestError as error:
        result["refusal"] = {"status": error.status_code, "message": str(error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


main()
