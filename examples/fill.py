"""Fill the holes of a text. Takes a model that sees both sides of a hole.

python examples/fill.py "Once upon a time" 12 " and lived happily ever after."
"""

from __future__ import annotations

import os
import sys

import httpx

URL = os.environ.get("DIFFUSIONGPT_URL", "http://localhost:8000")
KEY = os.environ.get("OPENAI_API_KEY", "none")

parts = sys.argv[1:] or ["Once upon a time", "12", " and lived happily ever after."]
segments = [{"mask": int(part)} if part.isdigit() else part for part in parts]
with httpx.Client(base_url=URL, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
    model = client.get("/v1/models").json()["data"][0]["id"]
    answer = client.post(
        "/v1/infill", json={"model": model, "segments": segments, "seed": 1}
    ).json()
if "error" in answer:
    sys.exit(answer["error"]["message"])
fills = iter(answer["choices"][0]["fills"])
print("".join(part if isinstance(part, str) else f"[{next(fills)}]" for part in segments))
