"""Ask a question with the openai client, as of any other server.

python examples/chat.py "Tell me a story about a cat."
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI

URL = os.environ.get("DIFFUSIONGPT_URL", "http://localhost:8000")

client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
question = sys.argv[1] if len(sys.argv) > 1 else "Tell me a story about a cat."
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": question}],
    max_tokens=64,
    seed=1,
    stream=True,
    # What is peculiar to diffusion: any of it may be left out.
    extra_body={"diffusion": {"policy": "entropy_bound"}},
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
