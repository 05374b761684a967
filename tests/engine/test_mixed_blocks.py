"""A checkpoint that was trained with several block lengths serves each of them, side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusiongpt.engine import (
    Draft,
    Engine,
    GenerationParams,
    Hole,
    Infill,
    InvalidRequest,
    LoadError,
)
from diffusiongpt.engine.attention_plan import AttentionPlan

from tiny_models import CONTEXT_LENGTH, write_modernbert

PROMPT = [6 + 7 * index % 80 for index in range(21)]


def write_with(folder: Path, block_length: int | None, **section: object) -> Path:
    return write_modernbert(folder, block_length=block_length, seed=5, section=section)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_with(tmp_path_factory.mktemp("mixed"), 4, block_lengths=[4, 8, 16, 0])
    return Engine.from_pretrained(folder, dtype="float32")


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Engine]:
    """The same weights as models of one block length each; 0 is the bidirectional one."""
    return {
        length: Engine.from_pretrained(
            write_with(tmp_path_factory.mktemp(f"b{length}"), length or None), dtype="float32"
        )
        for length in (4, 8, 16, 0)
    }


def asked(block_length: int | None, **fields: object) -> GenerationParams:
    settings: dict[str, object] = {"max_tokens": 37, "seed": 3, "temperature": 0.8}
    settings |= {"ignore_eos": True, "block_length": block_length, **fields}
    return GenerationParams(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("block_length", [None, 4, 8, 16, 0])
def test_each_block_length_is_the_model_that_has_it_alone(mixed, singles, block_length):
    got = mixed.generate([PROMPT], asked(block_length))[0]
    expected = singles[4 if block_length is None else block_length].generate([PROMPT], asked(None))
    assert got.token_ids == expected[0].token_ids
    assert got.usage.nfe == expected[0].usage.nfe


@pytest.mark.parametrize("block_length", [4, 16, 0])
def test_a_draft_is_doubted_and_refined_with_the_block_length_asked_for(
    mixed, singles, block_length
):
    draft = Draft(tuple(6 + 11 * index % 80 for index in range(30)), 0.3)
    got = mixed.generate([PROMPT], asked(block_length, draft=draft))[0]
    expected = singles[block_length].generate([PROMPT], asked(None, draft=draft))[0]
    assert got.token_ids == expected.token_ids
    assert got.usage.accepted_tokens == expected.usage.accepted_tokens
    assert got.usage.nfe == expected.usage.nfe


def test_block_lengths_share_a_batch_and_change_nothing_for_each_other(mixed):
    alone = [mixed.generate([PROMPT], asked(length))[0] for length in (4, 8, 16, 0)]
    requests = [mixed.prepare(PROMPT, asked(length)) for length in (4, 8, 16, 0)]
    tokens: dict[str, dict[int, int]] = {each.request_id: {} for each in requests}
    for request in requests:
        mixed.add(request)
    while not mixed.is_idle:
        for frame in mixed.step():
            tokens[frame.request_id].update(dict(frame.tokens))
    for request, expected in zip(requests, alone, strict=True):
        written = tokens[request.request_id]
        assert tuple(written[position] for position in sorted(written)) == expected.token_ids


def test_only_blocks_of_the_models_own_length_are_shared(mixed):
    engine = Engine.from_pretrained(mixed.config.model, dtype="float32")
    cached = [
        engine.generate([PROMPT], asked(length))[0].usage.cached_tokens
        for length in (4, 8, 4, 8, 0)
    ]
    assert cached == [0, 0, 20, 0, 0]


def test_holes_are_filled_with_the_whole_canvas_in_view(mixed, singles):
    prompt = Infill(PROMPT, Hole(5), PROMPT)
    got = mixed.generate([prompt], asked(None))[0]
    assert got.token_ids == singles[0].generate([prompt], asked(None))[0].token_ids
    with pytest.raises(InvalidRequest, match="block_length must be 0 or absent for an infill"):
        mixed.generate([prompt], asked(8))
    with pytest.raises(InvalidRequest, match="needs a bidirectional model"):
        singles[8].generate([prompt], asked(None))


def test_other_block_lengths_are_refused_with_those_that_are_served(mixed):
    with pytest.raises(InvalidRequest, match=r"must be 4 or 8 or 16 or 0, as .* got 5"):
        mixed.generate([PROMPT], asked(5))
    with pytest.raises(InvalidRequest, match="more than the model's context"):
        mixed.generate([PROMPT], asked(0, max_tokens=CONTEXT_LENGTH))
    assert mixed.info.block_lengths == (4, 8, 16, 0)


@pytest.mark.parametrize(
    ("block_length", "section", "words"),
    [
        (4, {"block_lengths": [8, 16]}, r"hold its block_length, got \[8, 16\] with .* 4"),
        (None, {"block_lengths": [0]}, "are of a block-causal model"),
        (4, {"block_lengths": 4}, "must be a list of lengths of at least 0"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(tmp_path, block_length, section, words):
    with pytest.raises(LoadError, match=words):
        Engine.from_pretrained(write_with(tmp_path, block_length, **section))


def test_runs_of_a_plan_have_one_block_length_each():
    runs = AttentionPlan(lengths=(5, 5, 5), block_lengths=(2, 2, None)).runs
    assert [(run.count, run.block_length) for run in runs] == [(2, 2), (1, None)]
    with pytest.raises(ValueError, match="2 segments have 1 block lengths"):
        AttentionPlan(lengths=(3, 4), block_lengths=(2,))
