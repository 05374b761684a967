"""Drafts: what is kept, what is redone, and where, against plain loops and the toy's law."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusiongpt.engine import (
    Completion,
    Draft,
    EditParams,
    Engine,
    GenerationParams,
    Hole,
    Infill,
)
from diffusiongpt.engine.doubt import NUM_LOOKS, look_at
from diffusiongpt.engine.errors import InvalidRequest
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.randomness import Purpose, counter_keys, uniform

from tiny_models import VOCAB_SIZE as IDS
from tiny_models import write_modernbert
from toy_models import (
    CausalHashModel,
    HashModel,
    MarkovModel,
    ToyModel,
    markov_chain,
    probabilities,
    toy_engine,
)

PROMPT = [1, 2, 3]
DRAFT = (5, 6, 7, 8, 9, 10, 11, 12)


def hash_model(block_length: int | None = None, **fields: Any) -> ToyModel:
    kind = HashModel if block_length is None else CausalHashModel
    return kind(vocab_size=40, block_length=block_length, **fields)


def refined(model: ToyModel, draft: Draft | None, **fields: Any) -> Completion:
    params = {"max_tokens": 12, "seed": 3, "ignore_eos": True, **fields}
    return toy_engine(model).generate([PROMPT], GenerationParams(draft=draft, **params))[0]


def frames_of(model: ToyModel, draft: Draft, **fields: Any) -> list[Frame]:
    params = {"max_tokens": 12, "seed": 3, "ignore_eos": True, **fields}
    engine = toy_engine(model, cache_blocks=isinstance(model, CausalHashModel))
    return list(engine.stream(PROMPT, GenerationParams(draft=draft, **params)))


@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("policy", PRESETS)
def test_a_draft_of_which_nothing_is_kept_changes_no_bit(policy: str, block_length: int | None):
    fields = {"policy": policy, "steps": 12 if PRESETS[policy].tosses else None}
    for pick in ("doubtful", "random"):
        model = hash_model(block_length)
        ours = refined(model, Draft(DRAFT, 1.0, pick), **fields)
        plain = refined(model, None, **fields)
        assert ours.token_ids == plain.token_ids
        assert ours.tokens == plain.tokens
        assert ours.usage.nfe == plain.usage.nfe


@pytest.mark.parametrize("block_length", [None, 4])
def test_strength_0_returns_the_draft_and_goes_on(block_length: int | None):
    ours = refined(hash_model(block_length), Draft(DRAFT, 0.0))
    goes_on = toy_engine(hash_model(block_length)).generate(
        [[*PROMPT, *DRAFT]],
        GenerationParams(max_tokens=4, temperature=0.0, seed=3, ignore_eos=True),
    )[0]
    assert ours.token_ids[:8] == DRAFT
    assert refined(hash_model(block_length), Draft(DRAFT, 0.0), temperature=0.0).token_ids == (
        *DRAFT,
        *goes_on.token_ids,
    )
    assert (ours.usage.nfe, ours.usage.accepted_tokens, ours.usage.rejected_tokens) == (
        ours.usage.steps,
        8,
        0,
    )


def redone(frames: Sequence[Frame]) -> tuple[int, ...]:
    return frames[1].remasked


@pytest.mark.parametrize(("strength", "count"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.3, 3), (1, 8)])
def test_strength_is_the_share_that_is_masked_rounded_up(strength: float, count: int):
    for pick in ("doubtful", "random"):
        frames = frames_of(hash_model(), Draft(DRAFT, strength, pick))
        assert len(redone(frames)) == count
        assert frames[1].masked == count + 4


def plain_doubt(model: ToyModel, room: int) -> list[float]:
    """Each token's probability where it alone is masked."""
    canvas = [*PROMPT, *DRAFT, *[model.mask_token_id] * room]
    found = []
    for place, token in enumerate(DRAFT, len(PROMPT)):
        masked = [model.mask_token_id if at == place else each for at, each in enumerate(canvas)]
        found.append(probabilities(model, masked)[place, token].item())
    return found


@pytest.mark.parametrize("block_length", [None, 4])
def test_of_a_short_draft_the_least_likely_given_all_others_are_redone(block_length: int | None):
    model = hash_model(block_length)
    # The last block is seen to its end, as by any step.
    doubt = plain_doubt(model, room=5 if block_length else 4)
    expected = sorted(sorted(range(8), key=lambda at: doubt[at])[:3])
    if block_length:
        # Every eighth is left out at a time: of eight, one.
        assert len(DRAFT) == NUM_LOOKS
    frames = frames_of(model, Draft(DRAFT, 0.375))
    assert list(redone(frames)) == expected
    assert frames[-1].usage is not None
    assert frames[-1].usage.nfe == 8 + frames[-1].step


def test_an_eighth_left_out_of_a_chain_is_each_token_given_all_others():
    chain = MarkovModel(markov_chain(seed=2), context_length=32)
    ids = chain.sample(1, 32, torch.Generator().manual_seed(4))[0]
    engine = toy_engine(chain)
    params = GenerationParams(max_tokens=32, draft=Draft(tuple(ids.tolist())))
    request = engine.prepare([], params)
    assert request.draft is not None
    found = look_at(chain, engine._head, request, request.draft, 64)  # type: ignore[arg-type]
    exact = []
    for place, token in enumerate(ids.tolist()):
        canvas = ids.clone()
        canvas[place] = chain.mask_token_id
        exact.append(chain.posterior(canvas[None])[0, place, token].item())
    assert found.tolist() == pytest.approx(exact, abs=1e-5)


def test_random_positions_are_those_that_ancestral_fills_last():
    seed = torch.tensor(3)
    times = uniform(counter_keys(seed, Purpose.ORDER, torch.arange(8))).tolist()
    expected = sorted(sorted(range(8), key=lambda at: times[at])[:5])
    assert list(redone(frames_of(hash_model(), Draft(DRAFT, 0.6, "random")))) == expected
    # All of them come in the last steps of a process that began long before.
    frames = frames_of(
        hash_model(), Draft(DRAFT, 0.6, "random"), max_tokens=8, policy="ancestral", steps=5
    )
    latest = max(times[at] for at in expected)
    assert frames[2].step >= (1.0 - latest) * 5


def test_refining_is_filling_the_holes_that_were_made():
    model = hash_model()
    for policy in ("confidence", "entropy_bound", "threshold"):
        fields = {"policy": policy, "temperature": 0.0}
        frames = frames_of(model, Draft(DRAFT, 0.5), **fields)
        tokens = {position: token for frame in frames for position, token in frame.tokens}
        parts: list[Any] = [PROMPT]
        for position, token in enumerate(DRAFT):
            parts.append(Hole(1) if position in redone(frames) else [token])
        params = GenerationParams(seed=3, **fields)
        # The room after the draft is a hole as well.
        filled = toy_engine(model).generate([Infill(*parts, Hole(4))], params)[0]
        start = redone(frames)[0]
        assert [tokens[position] for position in range(start, 12)] == list(filled.token_ids)


class Recorder(CausalHashModel):
    """Remembers what it was shown."""

    def backbone(self, *arguments: Any) -> torch.Tensor:
        self.shown.append(arguments[0][0].tolist())
        return super().backbone(*arguments)


def test_later_blocks_begin_with_the_draft_and_full_ones_take_no_forward():
    model = Recorder(vocab_size=40, block_length=4)
    model.shown = []
    draft = Draft(tuple(range(10, 31)), 0.1, "random")
    frames = frames_of(model, draft, max_tokens=21, temperature=0.0)
    mask = model.mask_token_id
    assert len(redone(frames)) == 3
    blocks = {(3 + position) // 4 for position in redone(frames)}
    assert frames[-1].usage is not None
    assert frames[-1].usage.nfe == len(model.shown) == 3
    for shown in model.shown:
        assert mask in shown
        assert sum(token >= 10 for token in shown if token != mask) >= 2
    assert {frame.block for frame in frames[2:]} <= blocks
    tokens = {position: token for frame in frames for position, token in frame.tokens}
    kept = set(range(21)) - set(redone(frames))
    assert all(tokens[position] == 10 + position for position in kept)


def test_a_forward_that_catches_up_with_kept_blocks_stays_within_the_budget():
    model = Recorder(vocab_size=40, block_length=4)
    model.shown = []
    engine = toy_engine(model, token_budget=64)
    draft = Draft((*range(10, 38), 11, 12), 0.01, "random")
    requests = [
        engine.prepare(PROMPT, GenerationParams(max_tokens=41, draft=draft, seed=seed))
        for seed in range(12)
    ]
    engine._run(requests)
    lengths = [len(shown) for shown in model.shown]
    assert max(lengths) <= 64
    # Some block is reached by one forward over all blocks before it.
    assert max(lengths) > 24


MIX: list[dict[str, Any]] = [
    {"draft": Draft(DRAFT, 0.5), "policy": "entropy_bound", "seed": 1},
    {"draft": Draft(DRAFT * 2, 0.3, "random"), "policy": "ancestral", "steps": 9, "seed": 2},
    {"policy": "random", "seed": 3},
    {"draft": Draft(DRAFT * 2, 0.2), "policy": "joint", "edits": EditParams(threshold=0.3)},
    {"draft": Draft(DRAFT, 0.0), "edits": EditParams(threshold=0.2), "max_tokens": 8},
    {"draft": Draft(DRAFT, 1.0), "policy": "remdm", "steps": 20, "seed": 4},
]


@pytest.mark.parametrize("block_length", [None, 4])
def test_a_draft_is_refined_the_same_alone_and_in_company(block_length: int | None):
    def run(mixed: Sequence[dict[str, Any]], num_slots: int) -> list[list[Any]]:
        engine = toy_engine(hash_model(block_length), num_slots=num_slots)
        requests = [
            engine.prepare(PROMPT, GenerationParams(**{"max_tokens": 20, "seed": 9, **each}))
            for each in mixed
        ]
        frames = engine._run(requests)
        return [
            [(frame.tokens, frame.remasked, frame.settled, frame.usage) for frame in frames[name]]
            for name in (each.request_id for each in requests)
        ]

    alone = [run([each], 1)[0] for each in MIX]
    assert run(MIX, 8) == alone
    # One slot after the other: nothing of the request before is left in it.
    assert run(MIX, 1) == alone
    assert run(MIX[::-1], 3)[::-1] == alone


def test_cached_and_recomputed_blocks_give_the_same_refinement(tmp_path: Path):
    folder = write_modernbert(tmp_path, block_length=8, section={"can_edit": True})
    texts = [tuple((7 * at + 11) % (IDS - 6) + 6 for at in range(n)) for n in (30, 17)]
    answers = []
    for settings in ({}, {"cache_blocks": False}):
        engine = Engine.from_pretrained(folder, dtype="float32", **settings)
        for text in texts:
            for fields in ({"strength": 0.4}, {"strength": 0.1, "pick": "random"}):
                params = GenerationParams(max_tokens=40, draft=Draft(text, **fields), seed=5)
                answers.append(engine.generate([list(range(10, 21))], params)[0].token_ids)
    assert answers[:4] == answers[4:]


class SecondThoughts(ToyModel):
    """Of a filled position it says that a 5 should be a 6, and a mask a 4."""

    def denoise(self, ids: torch.Tensor) -> torch.Tensor:
        said = torch.where(ids == 5, 6, ids).where(ids != self.mask_token_id, 4)
        return 9.0 * torch.nn.functional.one_hot(said, self.vocab_size).float()


@pytest.mark.parametrize("block_length", [None, 4])
def test_a_draft_is_edited_block_by_block_and_settles_with_its_block(block_length: int | None):
    model = SecondThoughts(vocab_size=12, block_length=block_length)
    draft = Draft((5, 7, 7, 7, 7, 7, 5, 7), 0.0)
    frames = frames_of(model, draft, max_tokens=8, edits=True, policy="threshold")
    tokens = {position: token for frame in frames for position, token in frame.tokens}
    assert [tokens[position] for position in range(8)] == [6, 7, 7, 7, 7, 7, 6, 7]
    assert frames[-1].finish_reason is FinishReason.LENGTH
    usage = frames[-1].usage
    assert usage is not None
    assert (usage.accepted_tokens, usage.rejected_tokens, usage.completion_tokens) == (6, 2, 8)
    settled = [frame.settled for frame in frames]
    # The prompt's three and the draft's first make a block; each is looked at until at rest.
    assert settled == ([0, 0, 0, 1, 5, 5, 8] if block_length else [0, 0, 0, 8])
    changed_at = [frame for frame in frames[2:] for position, _ in frame.tokens]
    assert all(p >= frame.settled for frame in changed_at for p, _ in frame.tokens)


def test_edits_and_masks_come_together():
    model = SecondThoughts(vocab_size=12)
    done = refined(
        model, Draft((5, 7, 7, 5), 0.5, "random"), max_tokens=6, edits=True, temperature=0.0
    )
    assert set(done.token_ids[:4]) <= {4, 6, 7}
    assert done.token_ids.count(4) == 4
    with pytest.raises(InvalidRequest, match="so they cannot be edited"):
        refined(hash_model(can_edit=False), Draft(DRAFT, 0.0), edits=True)


def test_refining_brings_a_corrupted_draft_towards_the_law():
    chain = MarkovModel(markov_chain(seed=2), context_length=32)
    generator = torch.Generator().manual_seed(5)
    true = chain.sample(120, 32, generator)
    noise = torch.randint(0, chain.vocab_size - 1, true.shape, generator=generator)
    corrupted = torch.where(torch.rand(true.shape, generator=generator) < 0.2, noise, true)
    engine = toy_engine(chain, num_slots=128, token_budget=128 * 32, max_waiting=200)

    def refine(strength: float, **fields: Any) -> float:
        common = {"max_tokens": 32, "policy": "confidence", "temperature": 1.0, **fields}
        requests = [
            engine.prepare(
                [],
                GenerationParams(
                    seed=row,
                    draft=Draft(tuple(ids), strength, fields.get("pick", "doubtful")),
                    **{name: value for name, value in common.items() if name != "pick"},
                ),
            )
            for row, ids in enumerate(corrupted.tolist())
        ]
        frames = engine._run(requests)
        rows = []
        for request in requests:
            tokens = {p: t for frame in frames[request.request_id] for p, t in frame.tokens}
            rows.append([tokens[position] for position in range(32)])
        return chain.negative_log_likelihood(torch.tensor(rows)).mean().item()

    law = chain.negative_log_likelihood(true).mean().item()
    start = chain.negative_log_likelihood(corrupted).mean().item()
    doubtful = refine(0.3)
    assert start - law > 0.8
    assert doubtful - law < 0.2 * (start - law)
    # At random it is one of three broken places that is mended.
    assert doubtful < refine(0.3, pick="random") - 0.2 < start
    edited = refine(0.0, edits=EditParams(threshold=0.5, max_rounds=4))
    assert edited - law < 0.5 * (start - law)


def test_a_draft_of_text_needs_a_tokenizer():
    with pytest.raises(InvalidRequest, match=r"has no tokenizer\.json"):
        refined(hash_model(), Draft("text"))


@pytest.mark.parametrize(
    ("draft", "sentence"),
    [
        (lambda: Draft(""), "a draft must have at least one token, got none"),
        (lambda: Draft(()), "a draft must have at least one token, got none"),
        (lambda: Draft(5), "must be text or token ids, got 5"),  # type: ignore[arg-type]
        (lambda: Draft("a", 1.5), r"strength must be a number in \[0, 1\], got 1.5"),
        (lambda: Draft("a", float("nan")), "got nan"),
        (lambda: Draft("a", True), "got True"),
        (lambda: Draft("a", 0.5, "best"), "pick must be doubtful or random, got 'best'"),  # type: ignore[arg-type]
    ],
)
def test_bad_drafts_are_refused_in_a_sentence(draft: Any, sentence: str):
    with pytest.raises(InvalidRequest, match=sentence):
        draft()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"draft": Draft((5, 40))}, r"token ids must be in 0\.\.39, got 40"),
        ({"draft": Draft((5, True))}, "must hold token ids, got True"),
        ({"draft": Draft(DRAFT), "max_tokens": 7}, "a draft must fit max_tokens=7, got 8 tokens"),
        (
            {"draft": Draft(DRAFT, 0.0), "max_tokens": 8},
            "the canvas is full already: the draft's 8 tokens are all of max_tokens=8",
        ),
        (
            {"draft": Draft(DRAFT), "policy": "p2"},
            "a draft cannot be refined by p2, whose schedule",
        ),
        (
            {"draft": Draft(DRAFT), "policy": "remdm", "steps": 9},
            "cannot be refined by remdm",
        ),
        ({"draft": "text"}, "draft must be a Draft, got 'text'"),
        (
            {"draft": Draft(DRAFT, 0.5), "block_length": 4, "steps": 2},
            "steps must be at least 3, one for each block",
        ),
        (
            {"draft": Draft(DRAFT), "max_tokens": 100, "block_length": 4},
            "pick must be random where prompt and max_tokens make 103 tokens",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_contradicts_a_draft_is_refused_in_a_sentence(fields: dict[str, Any], sentence: str):
    engine = toy_engine(hash_model())
    with pytest.raises(InvalidRequest, match=sentence):
        engine.prepare(PROMPT, GenerationParams(**{"max_tokens": 12, **fields}))


def test_a_draft_and_holes_contradict_each_other():
    with pytest.raises(InvalidRequest, match="a draft cannot come with holes"):
        toy_engine(hash_model()).prepare(Infill([1], Hole(2)), GenerationParams(draft=Draft(DRAFT)))


def test_a_look_that_fails_ends_its_request_alone(monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    engine = toy_engine(hash_model())
    monkeypatch.setattr("diffusiongpt.engine.doubt.look_at", fail)
    params = GenerationParams(max_tokens=12, seed=1)
    broken = engine.prepare(PROMPT, params.replace(draft=Draft(DRAFT)))
    fine = engine.prepare(PROMPT, params)
    frames = engine._run([broken, fine])
    assert frames[broken.request_id][-1].finish_reason is FinishReason.ERROR
    assert "out of memory" in (frames[broken.request_id][-1].error or "")
    assert frames[fine.request_id][-1].finish_reason is not FinishReason.ERROR
    assert (engine.num_running, engine.failure) == (0, None)


@pytest.mark.parametrize("block_length", [None, 8])
def test_deterministic_drafts_are_bit_for_bit_the_same_in_company(
    tmp_path: Path, block_length: int | None
):
    folder = write_modernbert(tmp_path, block_length=block_length)
    engine = Engine.from_pretrained(folder, dtype="float32", deterministic=True)
    texts = [tuple((7 * at + 11 * n) % (IDS - 6) + 6 for at in range(n)) for n in (30, 17, 24)]

    def run(drafts: Sequence[tuple[int, ...]]) -> list[Any]:
        requests = [
            engine.prepare(
                list(range(10, 21)),
                GenerationParams(max_tokens=40, draft=Draft(ids, 0.4), seed=len(ids)),
            )
            for ids in drafts
        ]
        frames = engine._run(requests)
        return [
            [(frame.tokens, frame.remasked, frame.committed) for frame in frames[each.request_id]]
            for each in requests
        ]

    assert [run([each])[0] for each in texts] == run(texts)
