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


def make_model(**fields: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=ASK["model"],
        base_url=TASK["base_url"],
        api_key="none",
        seed=ASK["seed"],
        max_completion_tokens=ASK["max_tokens"],
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


def main() -> None:
    result: dict[str, Any] = {"version": version("langchain-openai"), "answers": {}}
    for style, diffusion in TASK["styles"].items():
        model = make_model(extra_body={"diffusion": diffusion})
        result["answers"][f"whole, {style}"] = seen(model.invoke(MESSAGES))
        whole = None
        for part in model.stream(MESSAGES):
            whole = part if whole is None else whole + part
        result["answers"][f"loop, {style}"] = seen(whole)
    try:
        make_model(temperature=9).invoke(MESSAGES)
    except openai.BadRequestError as error:
        result["refusal"] = {"status": error.status_code, "message": str(error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


main()
