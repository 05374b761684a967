"""Ask for an answer that a program can read: JSON that satisfies a schema, always.

python examples/structured_output.py "Invent a cat."
"""

from __future__ import annotations

import json
import os
import sys

from openai import BadRequestError, OpenAI

URL = os.environ.get("DIFFUSIONGPT_URL", "http://localhost:8000")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "colour": {"enum": ["black", "white", "ginger"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["name", "colour", "age"],
    "additionalProperties": False,
}

client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
question = sys.argv[1] if len(sys.argv) > 1 else "Invent a cat."
try:
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": question}],
        response_format={"type": "json_schema", "json_schema": {"name": "cat", "schema": SCHEMA}},
        max_tokens=64,
        seed=1,
    )
except BadRequestError as refusal:
    sys.exit(refusal.message)
cat = json.loads(answer.choices[0].message.content or "")
print(f"{cat['name']} is {cat['colour']} and {cat['age']} years old.")
