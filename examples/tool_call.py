"""Let the model call a function of yours, and answer with what it returned.

python examples/tool_call.py "What time is it?"
"""

from __future__ import annotations

import json
import os
import sys

from openai import OpenAI

URL = os.environ.get("DIFFUSIONGPT_URL", "http://localhost:8000")


def tell_time(zone: str) -> str:
    return f"It is noon in {zone}."


TOOL = {
    "type": "function",
    "function": {
        "name": "tell_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["zone"],
        },
    },
}

client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
messages = [{"role": "user", "content": sys.argv[1] if len(sys.argv) > 1 else "What time is it?"}]
ask = {"model": model, "max_tokens": 96, "seed": 1}

# "required": the answer is a call, and its arguments are valid, whatever the model is like.
first = client.chat.completions.create(
    messages=messages, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **ask
)
[call] = first.choices[0].message.tool_calls
print(call.function.name, call.function.arguments)

result = tell_time(**json.loads(call.function.arguments))
messages.append(first.choices[0].message.model_dump(exclude_none=True))
messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
second = client.chat.completions.create(messages=messages, **ask)
print(second.choices[0].message.content)
