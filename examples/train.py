"""Train a small model on texts, and let it write: a tokenizer, a run, the engine.

python examples/train.py DATA 200    # the texts are in DATA/stories.jsonl (.jsonl.gz, .txt, ...)
"""

from __future__ import annotations

import sys
from pathlib import Path

from diffusiongpt.engine import Engine, GenerationParams
from diffusiongpt.training.config_file import load_config
from diffusiongpt.training.run import make_tokenizer, train

data, steps = sys.argv[1:]
runs = Path("runs/example")
tokenizer = make_tokenizer(
    ["stories"], data, str(runs / "tokenizer"), vocab_size=512, max_length=64
)
flags = {"data_dir": data, "tokenizer": tokenizer, "cache_dir": runs / "cache"}
flags |= {"output_dir": runs / "model", "max_steps": steps, "resume": "false"}
config = load_config(
    Path(__file__).parent.parent / "configs" / "tiny.yaml",
    [str(part) for name, value in flags.items() for part in (f"--{name}", value)],
)
engine = Engine.from_pretrained(train(config))
print(repr(engine.generate("The", GenerationParams(max_tokens=24, seed=1))[0].text))
