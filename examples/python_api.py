"""The engine itself, without a server: two prompts in one batch, then one step by step.

python examples/python_api.py FOLDER
"""

from __future__ import annotations

import sys

from diffusiongpt.engine import Engine, GenerationParams

engine = Engine.from_pretrained(*sys.argv[1:])  # without a folder: the bundled model
prompts = [
    engine.encode_chat([{"role": "user", "content": f"Tell me a story about {what}."}])
    for what in ("a cat", "a red ball")
]
params = GenerationParams(max_tokens=32, policy="entropy_bound", seed=1)
for done in engine.generate(prompts, params):
    print(repr(done.text), done.usage.nfe, "forwards")

for frame in engine.stream(prompts[0], params.replace(watch=True)):
    filled = ", ".join(f"{each.position} {each.text!r}" for each in frame.set)
    print(f"step {frame.step}, {frame.masked} masked: {filled}")
