"""Watch an answer form: every denoising step as a line, masks as dots.

python examples/watch.py "Tell me a story about a cat."
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
    max_tokens=32,
    seed=1,
    stream=True,
    extra_body={"diffusion": {"frames": "delta"}},
)

length, canvas = 0, {}
for chunk in stream:
    frame = (chunk.model_extra or {}).get("diffusion")
    if frame is None:
        continue
    length = frame.get("length", length)
    if frame["kind"] == "keyframe":
        canvas.clear()
    canvas.update({position: text for position, text, *_ in frame.get("set", ())})
    for position in frame.get("unset", ()):
        canvas.pop(position, None)
    if frame["kind"] in ("frame", "keyframe"):
        print(repr("".join(canvas.get(position, "·") for position in range(length))))
    if frame["kind"] == "end":
        print(repr("".join(canvas[position] for position in sorted(canvas))))
        print(f"{frame['nfe']} forwards, {frame['tokens_per_forward']} tokens per forward")
