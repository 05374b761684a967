"""Refine a draft: what the model doubts is masked and written again. Changed words are marked.

python examples/edit.py "Once upon a time there was a cat how liked the sun." 0.3
"""

from __future__ import annotations

import difflib
import os
import sys

import httpx

URL = os.environ.get("DIFFUSIONGPT_URL", "http://localhost:8000")
KEY = os.environ.get("OPENAI_API_KEY", "none")

draft = sys.argv[1] if len(sys.argv) > 1 else "Once upon a time there was a cat how liked the sun."
strength = float(sys.argv[2]) if len(sys.argv) > 2 else 0.3
with httpx.Client(base_url=URL, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
    model = client.get("/v1/models").json()["data"][0]["id"]
    ask = {"model": model, "input": draft, "seed": 1, "diffusion": {"strength": strength}}
    answer = client.post("/v1/edits", json=ask).json()
if "error" in answer:
    sys.exit(answer["error"]["message"])

before, after = draft.split(" "), answer["choices"][0]["text"].split(" ")
marked = []
for kind, i, j, k, m in difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes():
    old, new = " ".join(before[i:j]), " ".join(after[k:m])
    marked.append(old if kind == "equal" else f"[{old} → {new}]")
print(" ".join(marked))
details = answer["usage"]["completion_tokens_details"]
kept, lost = (details[f"{each}_prediction_tokens"] for each in ("accepted", "rejected"))
print(f"{kept} of {kept + lost} tokens kept, {details['nfe']} forwards")
