"""What is refused before a slot is taken, and how a canvas is cut into blocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongpt.engine.blocks import BlockPlan
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.info import ModelInfo
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.prepare import prepare_request
from diffusiongpt.engine.resolve import ORIGINAL_EDITS, original_parameters
from diffusiongpt.engine.scheduler import share_of_steps

DEFAULTS = GenerationParams(
    policy="entropy_bound", temperature=0.8, top_p=1.0, top_k=0, gap=1, entropy_bound=0.3
)


def model_info(*, block_causal: bool = False) -> ModelInfo:
    return ModelInfo(
        name="tiny",
        family="modernbert",
        attention="block_causal" if block_causal else "bidirectional",
        context_length=64,
        block_length=8 if block_causal else None,
        vocab_size=100,
        num_parameters=1,
        max_tokens=200,
        defaults=DEFAULTS,
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 201}, "max_tokens must be in 1..200, got 201"),
        ({"max_tokens": True}, "max_tokens must be an integer, got True"),
        ({"max_tokens": 8, "steps": 9}, "steps must be in 1..max_tokens=8, got 9"),
        ({"policy": "magic"}, "policy must be one of ancestral, .*, got 'magic'"),
        ({"temperature": -1.0}, r"temperature must be in \[0, 2\], got -1.0"),
        ({"temperature": float("nan")}, r"temperature must be in \[0, 2\], got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_k": -1}, "top_k must be in 0..2147483647, got -1"),
        ({"seed": 2**63}, "seed must be in -9223372036854775808..9223372036854775807"),
        ({"gap": 0}, "gap must be at least 1, got 0"),
        ({"max_tokens": 8, "gap": 65}, "gap must be in 1..64, got 65"),
        ({"stop": ("",)}, "each stop string must have 1 to 1024 characters, got ''"),
        ({"stop": ("a",) * 17}, "stop takes at most 16 strings, got 17"),
        (
            {"max_tokens": 8, "policy": "random", "threshold": 0.5},
            "threshold belongs to the policies threshold, factor, .*; random has no use for it",
        ),
        ({"max_tokens": 40, "block_length": 4, "steps": 9}, "steps must be at least 10"),
        (
            {"max_tokens": 20, "policy": "threshold", "steps": 6, "max_per_step": 3},
            "steps must be at least 7, because a step commits at most max_per_step=3 of 20 tokens",
        ),
        (
            {"max_tokens": 20, "block_length": 4, "steps": 9, "max_per_step": 3},
            "steps must be at least 10, because a step commits at most max_per_step=3 of 20",
        ),
        ({"max_per_step": 0}, r"max_per_step must be in 1\.\.65536, got 0"),
        (
            {"max_tokens": 8, "policy": "random", "max_per_step": 3},
            "max_per_step belongs to the policies threshold, .*wino; random has no use for it",
        ),
        ({"max_tokens": 100, "block_length": 60}, "must leave room for text"),
    ],
)
def test_a_request_that_cannot_be_honoured_is_refused_in_a_sentence(
    fields: dict[str, object], sentence: str
):
    with pytest.raises(InvalidRequest, match=sentence):
        prepare_request("r", [1, 2], GenerationParams(**fields), model_info())


def test_prompts_that_do_not_fit_are_refused():
    with pytest.raises(ContextLengthExceeded, match="has 64 tokens"):
        prepare_request("r", [1] * 64, GenerationParams(max_tokens=1), model_info())
    with pytest.raises(ContextLengthExceeded, match="make 70 tokens"):
        prepare_request("r", [1] * 40, GenerationParams(max_tokens=30), model_info())
    with pytest.raises(InvalidRequest, match=r"must be in 0\.\.99, got 100"):
        prepare_request("r", [100], GenerationParams(max_tokens=3), model_info())


def test_a_block_causal_model_refuses_another_block_and_lookahead():
    info = model_info(block_causal=True)
    with pytest.raises(InvalidRequest, match="block_length must be 8"):
        prepare_request("r", [1], GenerationParams(max_tokens=9, block_length=4), info)
    with pytest.raises(InvalidRequest, match="lookahead must be 0"):
        prepare_request("r", [1], GenerationParams(max_tokens=9, lookahead=4), info)


def test_open_fields_take_the_models_defaults_and_a_gate_stays_with_its_policy():
    request = prepare_request("r", [1], GenerationParams(max_tokens=9), model_info())
    assert request.params.policy == "entropy_bound"
    assert request.params.temperature == 0.8
    assert request.policy.entropy_bound == 0.3
    assert request.params.seed is not None
    other = prepare_request(
        "r", [1], GenerationParams(max_tokens=9, policy="threshold"), model_info()
    )
    assert other.policy.threshold == 0.9
    assert other.policy.entropy_bound == float("inf")


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.integers(0, 60),
    length=st.integers(1, 200),
    block=st.integers(1, 16),
    aligned=st.booleans(),
)
def test_blocks_cover_the_completion_and_windows_fit_the_context(
    prompt: int, length: int, block: int, aligned: bool
):
    context = 64 if not aligned else 64 // block * block
    plan = BlockPlan(
        prompt_length=min(prompt, context - block),
        length=length,
        block_length=block,
        aligned=aligned,
        lookahead=0 if aligned else block,
        context_length=context,
    )
    start, blocks = plan.prompt_length, 0
    while start < plan.end:
        end = plan.block_end(start)
        low, high = plan.window(end)
        assert start < end <= plan.end
        assert low <= start
        assert end <= high
        assert high - low <= plan.max_window <= context
        if aligned:
            assert low % block == 0
            assert high % block == 0
        start, blocks = end, blocks + 1
    assert blocks == len(list(plan.spans_from(plan.prompt_length)))


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=20), data=st.data())
def test_the_blocks_share_the_step_budget(sizes: list[int], data: st.DataObject):
    steps = data.draw(st.integers(len(sizes), sum(sizes)))
    spent = 0
    for index, size in enumerate(sizes):
        share = share_of_steps(
            steps_left=steps - spent,
            block_tokens=size,
            tokens_left=sum(sizes[index:]),
            most=size,
            blocks_after=len(sizes) - index - 1,
        )
        assert 1 <= share <= size
        spent += share
    assert spent <= steps


def test_the_originals_choices_get_samplers_that_keep_the_law():
    plain = GenerationParams(max_tokens=8, steps=4, **original_parameters(can_edit=False))
    request = prepare_request("r", [1], plain, model_info())
    assert (request.policy.timed, request.policy.revises) == (True, False)
    fields = original_parameters(use_confidence=True, can_edit=True)
    assert fields == {"policy": "confidence", "gap": 4, "edits": ORIGINAL_EDITS}
    forced = GenerationParams(max_tokens=8, **original_parameters(allow_edits=True, can_edit=False))
    with pytest.raises(InvalidRequest, match="tiny was not trained to predict filled positions"):
        prepare_request("r", [1], forced, model_info())
