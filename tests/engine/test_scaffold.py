"""Scaffolds: a schema's fixed text from the start, and a hole for each value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from diffusiongpt.engine import Constraint, Engine, GenerationParams, Hole, Infill
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.params import EditParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.replay import Replay
from diffusiongpt.engine.scaffold import pieces_of, values_of_scaffold

from tiny_models import write_modernbert
from tiny_tokenizer import DELETE, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [MASK, DELETE],
    "can_edit": True,
}
PROMPT = "the cat sat"
CLOSED = {"additionalProperties": False}
POINT = {"$defs": {"at": {"type": "integer", "minimum": 0, "maximum": 99}}}
BRIEF = {"type": "string", "maxLength": 4}


def record(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        **CLOSED,
    }


CARD = (
    record(
        {
            "name": BRIEF,
            "kind": {"const": "card"},
            "at": record({"x": {"$ref": "#/$defs/at"}, "y": {"$ref": "#/$defs/at"}}),
            "pair": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        }
    )
    | POINT
)

SIXTY_FIVE = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 65, "maxItems": 65}


def schema(value: Any) -> Constraint:
    return Constraint(kind="json_schema", source=json.dumps(value))


@pytest.fixture(scope="module", params=[None, 8], ids=["bidirectional", "block_causal"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    write_modernbert(
        folder, block_length=request.param, vocab_size=VOCAB_SIZE, seed=3, section=SECTION
    )
    write_tiny_tokenizer(folder)
    return Engine.from_pretrained(folder, dtype="float32", max_tokens=160)


def spelled(pieces: list[str | Constraint]) -> list[Any]:
    return [each if isinstance(each, str) else json.loads(each.source) for each in pieces]


@pytest.mark.parametrize(
    ("value", "pieces"),
    [
        (record({"a": BRIEF, "b": {"type": "null"}}), ['{"a":', BRIEF, ', "b":null}']),
        (record({"a": BRIEF, "b": BRIEF}, "a"), [record({"a": BRIEF, "b": BRIEF}, "a")]),
        (
            {"type": "array", "prefixItems": [BRIEF], "items": False, "minItems": 1},
            ["[", BRIEF, "]"],
        ),
        ({"type": "array", "items": BRIEF, "maxItems": 2}, None),
        ({"anyOf": [BRIEF, {"type": "null"}]}, None),
        (
            record({"k": {"enum": ["é\n"]}, "l": record({"m": BRIEF})}),
            ['{"k":"é\\n", "l":{"m":', BRIEF, "}}"],
        ),
        ({"const": [1, {"a": "b"}]}, None),
        ({"type": "object", **CLOSED}, None),
    ],
)
def test_pieces_are_what_never_changes_and_what_does(value: Any, pieces: list[Any] | None):
    assert spelled(pieces_of(json.dumps(value))) == ([value] if pieces is None else pieces)


def test_values_keep_the_definitions_that_they_refer_to():
    values = [json.loads(each.source) for each in values_of_scaffold(schema(CARD))]
    assert values == [BRIEF, POINT["$defs"]["at"], {"type": "boolean"}]
    several = {"type": "array", "items": {"$ref": "#/$defs/at"}}
    (kept,) = values_of_scaffold(schema(record({"all": several}) | POINT))
    assert json.loads(kept.source) == several | POINT
    assert values_of_scaffold(Constraint(kind="json_object")) == []
    assert values_of_scaffold(schema({"not": {}})) == []
    pair = {"type": "array", "minItems": 2, "maxItems": 2}
    many = {str(n): pair | {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(40)}
    tower = {"$ref": "#/$defs/0", "$defs": many | {"40": {"type": "null"}}}
    assert values_of_scaffold(schema(tower)) == []


@pytest.mark.parametrize("policy", PRESETS)
def test_every_policy_fills_the_values(engine: Engine, policy: str):
    if engine.info.attention == "block_causal" and policy not in ("ancestral", "joint", "wino"):
        return
    fields: dict[str, Any] = {"steps": 30} if PRESETS[policy].tosses else {}
    if policy in ("joint", "verify"):
        # Everything filled is gone over, and would be written anew where it may be.
        fields["edits"] = EditParams(threshold=0.01, doubt=0.1, max_rounds=2)
    params = GenerationParams(
        max_tokens=120, policy=policy, constraint=schema(CARD), scaffold=8, temperature=1.3, seed=2
    )
    for done in engine.generate([PROMPT] * 2, params.replace(**fields)):
        value = json.loads(done.text)
        assert Draft202012Validator(CARD).is_valid(value), done.text
        assert done.text.startswith('{"name":"')
        assert done.finish_reason is FinishReason.STOP
        assert done.fills[1:3] == (str(value["at"]["x"]), str(value["at"]["y"]))


def test_keys_are_there_from_the_start_and_cost_no_forward(engine: Engine):
    params = GenerationParams(
        max_tokens=120, constraint=schema(CARD), scaffold=6, temperature=1.0, seed=5, logprobs=0
    )
    frames = list(engine.stream(PROMPT, params.replace(watch=True)))
    first = Replay()
    first.apply(frames[0].set, frames[0].unset)
    assert '"kind":"card", "at":{"x":' in first.text
    assert frames[0].content == '{"name":'
    replay = Replay()
    for frame in frames:
        replay.apply(frame.set, frame.unset)
    content = "".join(frame.content for frame in frames)
    assert replay.text == content
    usage = frames[-1].usage
    assert usage is not None
    # A value that ends before its room does has a stop token.
    text_tokens = len(engine.encode(content))
    assert text_tokens - 5 <= usage.completion_tokens <= text_tokens + 25
    assert usage.prompt_tokens == len(engine.encode(PROMPT))
    whole = engine.generate([PROMPT], params.replace(scaffold=None))[0]
    assert usage.nfe < whole.usage.completion_tokens
    drawn = {each.position for frame in frames for each in frame.logprobs}
    keys = {position for position, _ in engine.prepare(PROMPT, params).canvas.given}
    assert keys
    assert not drawn & keys


def test_scaffolds_are_the_same_alone_and_in_company(engine: Engine):
    def params(seed: int, **fields: Any) -> GenerationParams:
        return GenerationParams(max_tokens=80, seed=seed, temperature=1.0, **fields)

    asked = [
        params(seed, constraint=schema(each), scaffold=room)
        for seed, each, room in ((1, CARD, 6), (2, BRIEF, 9), (3, CARD, None), (4, CARD, 3))
    ]
    asked.insert(2, params(7))
    alone = [engine.generate([PROMPT], each)[0].text for each in asked]
    requests = [engine.prepare(PROMPT, each) for each in asked]
    frames = engine._run(requests)
    together = ["".join(f.content for f in frames[each.request_id]) for each in requests]
    assert together == alone


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_tokens": 12}, "max_tokens must be at least [0-9]+, what the keys and the room"),
        ({"constraint": None}, "scaffold goes with a json_schema, got no constraint"),
        ({"constraint": Constraint(kind="json_object")}, "got a json_object"),
        ({"constraint": schema({"type": "object"})}, "from left to right, because an object may"),
        ({"constraint": schema(SIXTY_FIVE)}, "at most 64 values"),
        ({"scaffold": 0}, "scaffold must be at least 1, got 0"),
        ({"stop": ("}",)}, "stop must be absent"),
    ],
)
def test_what_no_scaffold_can_do_is_refused(engine: Engine, fields: dict[str, Any], sentence: str):
    asked = {"max_tokens": 120, "constraint": schema(CARD), "scaffold": 4} | fields
    with pytest.raises(InvalidRequest, match=sentence):
        engine.prepare(PROMPT, GenerationParams(**asked))


def test_holes_that_are_asked_for_are_no_scaffold(engine: Engine):
    params = GenerationParams(constraint=schema(CARD), scaffold=3)
    with pytest.raises(InvalidRequest, match="a scaffold cannot come with holes"):
        engine.prepare(Infill("a", Hole(9)), params)
