"""Constrained completions through the engine: always whole, the right law, the same in company."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusiongpt.engine import Constraint, Engine, EngineConfig, GenerationParams, Hole, Infill
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.replay import Replay
from diffusiongpt.engine.tokenizer import Tokenizer

from tiny_models import write_modernbert
from tiny_tokenizer import DELETE, IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from toy_models import ToyModel

SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [MASK],
    "can_edit": True,
}
DATE = Constraint(kind="regex", source=r"\d{4}-\d{2}-\d{2}")
PERSON = Constraint(
    kind="json_schema",
    source=json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    ),
)
# Of properties that nobody named there is no automaton.
OPEN_PERSON = Constraint(
    kind="json_schema",
    source=PERSON.source.replace(', "additionalProperties": false', ""),
)
PROMPT = "the cat sat"


@pytest.fixture(scope="module", params=[None, 8], ids=["bidirectional", "block_causal"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("model")
    write_modernbert(
        folder, block_length=request.param, vocab_size=VOCAB_SIZE, seed=3, section=SECTION
    )
    write_tiny_tokenizer(folder)
    return Engine.from_pretrained(folder, dtype="float32", max_tokens=128)


def is_person(text: str, *, is_closed: bool = True) -> bool:
    person = json.loads(text)
    return (
        list(person)[: None if is_closed else 2] == ["name", "age"]
        and isinstance(person["name"], str)
        and len(person["name"]) <= 9
        and type(person["age"]) is int
    )


@pytest.mark.parametrize("policy", [name for name in PRESETS if not PRESETS[name].revises])
def test_every_policy_that_revises_nothing_gives_whole_texts(engine: Engine, policy: str):
    for constraint in (PERSON, OPEN_PERSON):
        params = GenerationParams(
            max_tokens=40, policy=policy, constraint=constraint, temperature=1.0, seed=4
        )
        for done in engine.generate([PROMPT] * 2, params):
            assert is_person(done.text, is_closed=constraint is PERSON)
            assert done.finish_reason is FinishReason.STOP


def test_the_shortest_room_is_enough_and_less_is_refused(engine: Engine):
    for constraint in (PERSON, OPEN_PERSON):
        shortest = len(engine.compile(constraint).shortest)
        params = GenerationParams(
            max_tokens=shortest, constraint=constraint, seed=1, temperature=2.0
        )
        for done in engine.generate([PROMPT] * 3, params):
            assert is_person(done.text, is_closed=constraint is PERSON)
        sentence = f"max_tokens must be at least {shortest}, .*got {shortest - 1}"
        with pytest.raises(InvalidRequest, match=sentence):
            engine.prepare(PROMPT, params.replace(max_tokens=shortest - 1))


def test_the_same_alone_and_in_company(engine: Engine):
    def params(seed: int, **fields: Any) -> GenerationParams:
        return GenerationParams(max_tokens=30, seed=seed, temperature=1.0, **fields)

    asked = [
        params(seed, constraint=constraint)
        for seed, constraint in enumerate((PERSON, None, DATE, OPEN_PERSON, PERSON, DATE))
    ]
    alone = [engine.generate([PROMPT], each)[0].token_ids for each in asked]
    requests = [engine.prepare(PROMPT, each) for each in asked]
    frames = engine._run(requests)
    together = []
    for request in requests:
        tokens = dict(pair for each in frames[request.request_id] for pair in each.tokens)
        together.append(tuple(tokens[position] for position in sorted(tokens)))
    assert [each[: len(one)] for each, one in zip(together, alone, strict=True)] == alone


def test_forced_text_takes_no_forward_and_is_certain(engine: Engine):
    constraint = Constraint(kind="json_schema", source='{"const": {"cat": ["dog", "sun"]}}')
    params = GenerationParams(max_tokens=60, constraint=constraint, seed=2, logprobs=2)
    frames = list(engine.stream(PROMPT, params.replace(watch=True)))
    usage = frames[-1].usage
    assert usage is not None
    assert usage.nfe < usage.completion_tokens / 2
    replay = Replay()
    for frame in frames:
        replay.apply(frame.set, frame.unset)
    assert json.loads(replay.text) == {"cat": ["dog", "sun"]}
    assert "".join(frame.content for frame in frames) == replay.text
    told = [each for frame in frames for each in frame.logprobs]
    # A stop token may be drawn before it is known to stand after the end.
    end = usage.completion_tokens
    assert sorted(each.position for each in told if each.position < end) == list(range(end))
    committed = [each for frame in frames for each in frame.committed]
    assert {each.position for each in committed} == {each.position for each in told}
    assert {each.token.token_id for each in told if each.position >= end} <= {IM_END}


def test_guides_that_fail_end_their_requests_and_no_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> list[int]:
        raise RuntimeError("a grammar gave up")

    for guide in ("guide.Guide", "anyorder.AnyOrderGuide"):
        monkeypatch.setattr(f"diffusiongpt.engine.{guide}.take_forced_in", fail)
    guided = GenerationParams(max_tokens=30, constraint=PERSON, seed=1)
    in_order = guided.replace(constraint=OPEN_PERSON)
    free = GenerationParams(max_tokens=30, seed=1)
    requests = [engine.prepare(PROMPT, each) for each in (guided, in_order, free, in_order, guided)]
    last = [frames[-1] for frames in engine._run(requests).values()]
    failed = [frame.finish_reason is FinishReason.ERROR for frame in last]
    assert failed == [True, True, False, True, True]
    assert "a grammar gave up" in (last[0].error or "")
    assert engine.failure is None
    assert engine.is_idle


def test_greedy_and_biased_draws_are_kept_within_the_language(engine: Engine):
    digit = engine.encode("7")[0]
    params = GenerationParams(
        max_tokens=20, constraint=DATE, temperature=0.0, logit_bias=((digit, 50.0),)
    )
    assert engine.generate([PROMPT], params)[0].text == "7777-77-77"
    banned = params.replace(logit_bias=((digit, -100.0),), temperature=1.0, seed=1)
    assert re.fullmatch(DATE.source, engine.generate([PROMPT], banned)[0].text)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"stop": ("-",)}, "stop must be absent, because a stop string would cut the text"),
        ({"ignore_eos": True}, "ignore_eos must be false"),
    ],
)
def test_what_contradicts_a_constraint_is_refused(
    engine: Engine, fields: dict[str, Any], sentence: str
):
    with pytest.raises(InvalidRequest, match=sentence):
        engine.prepare(PROMPT, GenerationParams(max_tokens=20, constraint=DATE, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"policy": "remdm", "steps": 9},
        {"policy": "wino"},
        {"policy": "random", "edits": True},
    ],
)
def test_what_is_written_from_left_to_right_is_not_revised(engine: Engine, fields: dict[str, Any]):
    large = Constraint(kind="regex", source=r"\w{1,40}!")
    for constraint in (OPEN_PERSON, large):
        params = GenerationParams(max_tokens=40, constraint=constraint, **fields)
        sentence = f"this {constraint.kind} is written from left to right, where what is committed"
        with pytest.raises(InvalidRequest, match=sentence):
            engine.prepare(PROMPT, params)


def test_the_text_of_one_hole_can_be_constrained(engine: Engine):
    prompt = Infill("the day was ", Hole(16), " and the cat sat")
    params = GenerationParams(constraint=DATE, seed=5, temperature=1.0)
    if engine.info.attention == "block_causal":
        return
    done = engine.generate([prompt], params)[0]
    assert re.fullmatch(DATE.source, done.fills[0])
    two = Infill("the ", Hole(12), " and ", Hole(12))
    refusal = (
        "this json_schema is written from left to right and takes one hole, got 2 of them; it goes "
        "in no other order, because an object may have properties that it does not name"
    )
    with pytest.raises(InvalidRequest, match=refusal):
        engine.prepare(two, params.replace(constraint=OPEN_PERSON))
    with pytest.raises(InvalidRequest, match=r"a hole's length must be at least .* got 4"):
        engine.prepare(Infill("the ", Hole(4), " cat"), params)


class FixedModel(ToyModel):
    """The same logits whatever the canvas holds."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(vocab_size=logits.shape[1], stop_token_ids=(IM_END,))
        self._logits = logits

    @property
    def mask_token_id(self) -> int:
        return MASK

    def denoise(self, ids: Tensor) -> Tensor:
        return self._logits[: len(ids)]


def law_of(words: list[bytes], logits: Tensor, tokenizer: Tokenizer) -> dict[bytes, float]:
    """The chance of each word, by enumeration: token by token, renormalised over what may still
    become a word."""
    spelled = [tokenizer.token_bytes(each) for each in range(VOCAB_SIZE)]
    chances: Counter[bytes] = Counter()

    def go_on(prefix: bytes, position: int, chance: float) -> None:
        if position == len(logits) - 1:
            chances[prefix] += chance
            return
        allowed = [
            each
            for each in range(VOCAB_SIZE)
            if (each == IM_END and prefix in words)
            or (spelled[each] and any(word.startswith(prefix + spelled[each]) for word in words))
        ]
        share = logits[position + 1, allowed].softmax(dim=0).tolist()
        for token_id, part in zip(allowed, share, strict=True):
            if token_id == IM_END:
                chances[prefix] += chance * part
            else:
                go_on(prefix + spelled[token_id], position + 1, chance * part)

    go_on(b"", 0, 1.0)
    return dict(chances)


@pytest.mark.parametrize(
    ("policy", "steps"), [("ancestral", 1), ("random", 2), ("confidence", 2), ("threshold", None)]
)
def test_proposals_do_not_change_the_law(tokenizer: Tokenizer, policy: str, steps: int | None):
    words = [b"AB", b"BA", b"ABBA", b"BBB", b"CAB", b"C"]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, VOCAB_SIZE, generator=generator)
    letters = [tokenizer.encode(each)[0] for each in "ABC"]
    logits[:, [*letters, IM_END]] += 4.0  # so that proposals are often kept
    law = law_of(words, logits, tokenizer)
    assert math.isclose(sum(law.values()), 1.0, abs_tol=1e-6)
    engine = Engine(
        FixedModel(logits),  # type: ignore[arg-type]
        tokenizer,
        EngineConfig(max_tokens=8, num_slots=64, max_waiting=4096),
    )
    texts = " | ".join(f'"{word.decode()}"' for word in words)
    grammar = Constraint(kind="grammar", source=f"start: {texts}")
    params = GenerationParams(
        max_tokens=4,
        policy=policy,
        steps=steps,
        threshold=0.1 if policy == "threshold" else None,
        constraint=grammar,
        temperature=1.0,
        seed=0,
    )
    count = 1200
    done = engine.generate([[DELETE]] * count, params)
    assert sum(each.usage.nfe for each in done) < 0.9 * sum(len(each.token_ids) for each in done)
    seen = Counter(each.text.encode() for each in done)
    distance = sum(abs(seen[word] / count - law[word]) for word in words) / 2
    noise = sum(math.sqrt(p * (1 - p) / count) for p in law.values()) / 2
    assert distance < 2.5 * noise
