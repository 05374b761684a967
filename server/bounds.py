"""What the engine accepts of a field's values, for the OpenAPI document.

The engine is who refuses: these are its own limits, in the words of JSON schema, so that whoever
makes requests from the document makes good ones.
"""

from __future__ import annotations

from typing import Any

from diffusiongpt.engine.constraint import MAX_CHOICES as MAX_TEXTS
from diffusiongpt.engine.constraint import MAX_SOURCE_CHARACTERS
from diffusiongpt.engine.logprobs import MAX_LOGPROBS
from diffusiongpt.engine.params import (
    MAX_BIASED,
    MAX_STABLE,
    MAX_STEPS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_TOP_K,
    SEED_MAX,
    SEED_MIN,
)
from diffusiongpt.engine.policies import MAX_ROUNDS, PRESETS
from diffusiongpt.server.chat_request import MAX_MESSAGES
from diffusiongpt.server.protocol import MAX_CHOICES
from diffusiongpt.server.tools import MAX_TOOLS, TOOL_NAME

Json = dict[str, Any]


def _between(low: float, high: float | None = None) -> Json:
    return {"minimum": low} if high is None else {"minimum": low, "maximum": high}


def _above(low: float, high: float) -> Json:
    return {"exclusiveMinimum": low, "maximum": high}


_STOP: Json = {"minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
_SOURCE: Json = {"minLength": 1, "maxLength": MAX_SOURCE_CHARACTERS}
# By field (of one schema, where its name alone says too little), then by the type of the value.
BOUNDS: dict[str, dict[str, Json]] = {
    "messages": {"array": {"minItems": 1, "maxItems": MAX_MESSAGES}},
    "temperature": {"number": _between(0, 2)},
    "top_p": {"number": _above(0, 1)},
    "top_k": {"integer": _between(0, MAX_TOP_K)},
    "min_p": {"number": _between(0, 1)},
    "frequency_penalty": {"number": _between(-2, 2)},
    "presence_penalty": {"number": _between(-2, 2)},
    "logit_bias": {
        "object": {
            "maxProperties": MAX_BIASED,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", **_between(-100, 100)},
        }
    },
    "seed": {"integer": _between(SEED_MIN, SEED_MAX)},
    "stop": {
        "string": _STOP,
        "array": {"maxItems": MAX_STOP_STRINGS, "items": {"type": "string", **_STOP}},
    },
    "n": {"integer": _between(1, MAX_CHOICES)},
    "best_of": {"integer": _between(1, MAX_CHOICES)},
    "max_tokens": {"integer": _between(1)},
    "max_completion_tokens": {"integer": _between(1)},
    "logprobs": {"integer": _between(0, MAX_LOGPROBS)},
    "top_logprobs": {"integer": _between(0, MAX_LOGPROBS)},
    "steps": {"integer": _between(1, MAX_STEPS)},
    "block_length": {"integer": _between(0)},
    "policy": {"string": {"enum": list(PRESETS)}},
    "threshold": {"number": _between(0, 1)},
    "margin": {"number": _between(1)},
    "doubt": {"number": _between(0, 1)},
    "max_rounds": {"integer": _between(0, MAX_ROUNDS)},
    "factor": {"number": _between(0)},
    "entropy_bound": {"number": _between(0)},
    "max_per_step": {"integer": _between(1, MAX_STEPS)},
    "stable": {"integer": _between(1, MAX_STABLE)},
    "credit": {"number": _above(0, 10)},
    "position_bias": {"number": _between(0)},
    "remask": {"number": _above(0, 1)},
    "gap": {"integer": _between(1)},
    "scaffold": {"integer": _between(1)},
    "strength": {"number": _between(0, 1)},
    "TextPart.type": {"string": {"enum": ["text"]}},
    "tools": {"array": {"maxItems": MAX_TOOLS}},
    "Tool.type": {"string": {"enum": ["function"]}},
    "FunctionDefinition.name": {"string": {"pattern": TOOL_NAME}},
    "FunctionDefinition.parameters": {"object": {"properties": {"type": {"const": "object"}}}},
    "mask": {"integer": _between(1)},
    "JsonSchemaFormat.name": {"string": {"pattern": "^[A-Za-z0-9_-]{1,64}$"}},
    "regex": {"string": _SOURCE},
    "grammar": {"string": _SOURCE},
    "choice": {"array": {"minItems": 1, "maxItems": MAX_TEXTS}},
}


def state_bounds(schema: Json) -> None:
    """Write the bounds into an object schema's properties, each beside its type."""
    for name, prop in schema.get("properties", {}).items():
        bounds = BOUNDS.get(f"{schema.get('title')}.{name}", BOUNDS.get(name, {}))
        for variant in prop.get("anyOf", [prop]):
            variant |= bounds.get(variant.get("type"), {})
