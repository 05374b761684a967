"""Infilling: what is given stays, holes see both sides, and the law is the model's own."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from diffusiongpt.engine.canvas import Canvas, Hole, Infill, constraints_of
from diffusiongpt.engine.constraint import Constraint
from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.errors import ContextLengthExceeded, InvalidRequest
from diffusiongpt.engine.frame import FinishReason
from diffusiongpt.engine.holes import HoledText
from diffusiongpt.engine.params import GenerationParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.replay import Replay

from tiny_models import CONTEXT_LENGTH, write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer
from toy_models import HashModel, MarkovModel, markov_chain, toy_engine

SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [0, 2, MASK],
    "can_edit": True,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder: Path = tmp_path_factory.mktemp("model")
    write_modernbert(folder, vocab_size=VOCAB_SIZE, seed=3, section=SECTION)
    return Engine.from_pretrained(write_tiny_tokenizer(folder), dtype="float32")


def test_a_canvas_knows_its_prompt_region_and_suffix():
    canvas = Canvas.of_parts([[1, 2], Hole(2), [3], Hole(1), Hole(1), [4, 5]])
    assert canvas.prompt == (1, 2)
    assert canvas.region == (None, None, 3, None, None)
    assert canvas.suffix == (4, 5)
    assert canvas.given == ((2, 3),)
    assert canvas.holes == ((0, 2), (3, 5))
    assert (canvas.num_masked, canvas.num_given) == (4, 5)


def test_touching_holes_are_cut_where_their_constraints_differ():
    digits, letters = (Constraint(kind="regex", source=each) for each in ("[0-9]+", "[a-z]+"))
    parts = [[1], Hole(2), Hole(1, constraint=digits), [], Hole(3, constraint=digits)]
    parts += [Hole(2, constraint=letters), [7], Hole(2, constraint=letters), []]
    canvas = Canvas.of_parts(parts)
    assert canvas.cuts == (2, 6)
    assert canvas.holes == ((0, 2), (2, 6), (6, 8), (9, 11))
    assert constraints_of(parts) == [None, digits, letters, letters]


@pytest.mark.parametrize("policy", PRESETS)
def test_what_is_given_stays_and_every_hole_is_filled(policy: str):
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    steps = 8 if PRESETS[policy].tosses else None
    params = GenerationParams(policy=policy, steps=steps, seed=1)
    infill = Infill([1, 2], Hole(5), [7, 8, 9], Hole(3), [11])
    done = engine.generate([infill], params)[0]
    assert done.token_ids[5:8] == (7, 8, 9)
    assert len(done.token_ids) == 11
    assert engine._model.mask_token_id not in done.token_ids
    assert done.finish_reason is FinishReason.STOP
    assert done.usage.completion_tokens == 8
    assert done.usage.prompt_tokens == 6


def test_an_infill_with_nothing_after_its_hole_is_a_completion():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    params = GenerationParams(max_tokens=9, policy="confidence", seed=4, ignore_eos=True)
    plain, holed = engine.generate([[1, 2, 3], Infill([1, 2, 3], Hole(9))], params)
    one, other = (
        engine.generate([prompt], params)[0] for prompt in ([1, 2, 3], Infill([1, 2, 3], Hole(9)))
    )
    assert plain.token_ids == one.token_ids == other.token_ids
    assert len(holed.token_ids) == 9


def test_blocks_skip_what_is_given():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    params = GenerationParams(policy="confidence", block_length=4, seed=2)
    done = engine.generate([Infill([1], Hole(2), list(range(5, 17)), Hole(2), [3])], params)[0]
    assert done.token_ids[2:14] == tuple(range(5, 17))
    assert done.usage.nfe == 4


def test_one_token_a_step_draws_from_the_bridge_between_both_sides():
    length, num = 6, 4000
    chain = MarkovModel(markov_chain(states=4, seed=3), context_length=length)
    engine = toy_engine(chain, num_slots=512, token_budget=512 * length, max_waiting=num)
    params = GenerationParams(policy="random", temperature=1.0, seed=0)
    infill = Infill([1], Hole(4), [2])
    drawn = torch.tensor([c.token_ids for c in engine.generate([infill] * num, params)])
    power = torch.linalg.matrix_power(chain.transition, 4)
    for position in range(4):
        left = torch.linalg.matrix_power(chain.transition, position + 1)[1]
        right = torch.linalg.matrix_power(chain.transition, 4 - position)[:, 2]
        exact = left * right / (power @ chain.transition)[1, 2]
        seen = torch.bincount(drawn[:, position], minlength=4) / num
        assert (seen - exact).abs().sum() / 2 < 0.03


def test_the_same_infill_in_company_is_the_same():
    engine = toy_engine(HashModel(vocab_size=40, context_length=64))
    infill = Infill([1, 2], Hole(5), [7, 8, 9], Hole(3), [11])
    alone = engine.generate([infill], GenerationParams(max_tokens=20, seed=5))[0]
    company = engine.generate([infill, [3, 4], infill], GenerationParams(max_tokens=20, seed=5))
    assert company[0].token_ids == alone.token_ids


def test_text_fills_and_frames_agree(engine: Engine):
    infill = Infill("the cat ", Hole(4), " on the mat and ", Hole(3), " in the sun")
    params = GenerationParams(seed=3, temperature=0.7, watch=True)
    done = engine.generate([infill], params)[0]
    frames = list(engine.stream(infill, params))
    replay = Replay()
    for frame in frames:
        replay.apply(frame.set, frame.unset)
    assert "".join(frame.content for frame in frames) == replay.text == done.text
    assert len(done.fills) == 2
    assert " on the mat and " in done.text


def cut(data: bytes, stop: tuple[str, ...]) -> str:
    """The text of a hole by definition: all of it, up to where the first stop string begins."""
    text = data.decode(errors="replace")
    return text[: min((text.find(each) for each in stop if each in text), default=len(text))]


@pytest.mark.parametrize("stop", [(), ("b",), ("ab", "ba"), ("é", "aa"), ("�",), ("c-",)], ids=str)
def test_a_holes_text_ends_before_its_first_stop_string_in_any_order(stop: tuple[str, ...]):
    random = Random(str(stop))
    alphabet = b"abc\xc3\xa9-"
    for _ in range(60):
        region: list[int | None] = []
        for _ in range(random.randint(1, 3)):
            region += [None] * random.randint(1, 6) + list(b"-b-"[: random.randint(1, 3)])
        region.append(None)
        canvas = Canvas(prompt=(), region=tuple(region), suffix=(1,))
        ids = [random.choice(alphabet) if each is None else each for each in region]
        data = bytes(ids)
        spell = lambda each: bytes([each])  # noqa: E731
        text = HoledText.of_region(spell, region, canvas.holes, stop=stop, watch=True)
        updates = [text.commit([(at, each, 1.0) for at, each in canvas.given])]
        order = [at for at, each in enumerate(region) if each is None]
        random.shuffle(order)
        while order:
            batch = [order.pop() for _ in range(min(len(order), random.randint(1, 3)))]
            updates.append(text.commit([(at, ids[at], 0.5) for at in batch]))
            if updates[-1].stopped:
                break
        updates.append(text.finish(len(region)))
        fills = tuple(cut(data[start:end], stop) for start, end in canvas.holes)
        assert text.fills == fills
        was_cut = [fill != data[start:end].decode(errors="replace")
                   for fill, (start, end) in zip(fills, canvas.holes, strict=True)]  # fmt: skip
        reasons = [FinishReason.STOP if each else FinishReason.LENGTH for each in was_cut]
        assert list(text.fill_reasons) == reasons
        expected, at = "", 0
        for fill, (start, end) in zip(fills, canvas.holes, strict=True):
            expected += data[at:start].decode() + fill
            at = end
        assert "".join(each.content for each in updates) == expected + data[at:].decode()
        replay = Replay()
        for each in updates:
            replay.apply(each.set, each.unset)
        assert replay.text == "".join(each.content for each in updates)
        settled = [each.settled for each in updates]
        assert settled == sorted(settled)
        assert settled[-1] == len(region)
        assert text.end == len(region)


def test_a_stop_string_ends_its_hole_and_the_slot_is_free_when_all_have_ended(engine: Engine):
    infill = Infill("the cat ", Hole(9), " on the mat and ", Hole(9), " in the sun")
    params = GenerationParams(seed=3, temperature=1.0, policy="random", watch=True)
    whole = engine.generate([infill], params)[0]
    assert set(whole.fill_reasons) == {FinishReason.LENGTH}
    first, second = whole.fills
    only = next(each for each in first[1:] if each not in second)
    done = engine.generate([infill], params.replace(stop=(only,)))[0]
    assert done.fills == (cut(first.encode(), (only,)), second)
    assert done.fill_reasons == (FinishReason.STOP, FinishReason.LENGTH)
    assert done.text == f"{done.fills[0]} on the mat and {second}"
    both = params.replace(stop=(first[0], second[0]))
    ended = engine.generate([infill], both)[0]
    assert ended.text == " on the mat and "
    assert ended.fills == ("", "")
    assert ended.usage.nfe < whole.usage.nfe
    replay = Replay()
    for frame in engine.stream(infill, both):
        replay.apply(frame.set, frame.unset)
    assert replay.text == ended.text
    assert engine.num_running == 0


def test_a_hole_at_the_end_is_told_as_every_other(engine: Engine):
    params = GenerationParams(seed=3, temperature=1.0, policy="random")
    whole = engine.generate([Infill("the cat ", Hole(9))], params)[0]
    assert whole.fills == (whole.text,)
    assert whole.fill_reasons == (FinishReason.LENGTH,)
    stop = (whole.text[3],)
    ended = engine.generate([Infill("the cat ", Hole(9))], params.replace(stop=stop))[0]
    assert ended.fills == (ended.text,) == (cut(whole.text.encode(), stop),)
    assert ended.fill_reasons == (FinishReason.STOP,)
    assert ended.finish_reason is FinishReason.STOP


def test_what_cannot_be_filled_is_refused(engine: Engine, tmp_path: Path):
    for parts, words in (
        (("no hole",), "1 to 64 holes, got 0"),
        (("a", Hole(0)), "must be in 1..1000000, got 0"),
        (("a", Hole(-3)), "got -3"),
        (("a", Hole(True)), "must be an integer, got True"),
        ((Hole(1),) * 65, "got 65"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            engine.prepare(Infill(*parts))
    with pytest.raises(ContextLengthExceeded, match=str(CONTEXT_LENGTH)):
        engine.prepare(Infill("a", Hole(CONTEXT_LENGTH), "b"))
    with pytest.raises(InvalidRequest, match=r"steps must be in 1\.\.2"):
        engine.prepare(Infill("a", Hole(2), "b"), GenerationParams(steps=3))
    blocks = Engine.from_pretrained(write_modernbert(tmp_path, block_length=8))
    with pytest.raises(InvalidRequest, match="block-causal and sees nothing after"):
        blocks.prepare(Infill([10], Hole(2), [11]))
