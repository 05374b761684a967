"""The engine on real (tiny, random) checkpoints: bitwise company, the plain loop, the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import ModernBertForMaskedLM

from diffusiongpt.engine.engine import Engine
from diffusiongpt.engine.frame import FinishReason, Frame
from diffusiongpt.engine.params import EditParams, GenerationParams
from diffusiongpt.engine.policies import PRESETS
from diffusiongpt.engine.replay import Replay

from tiny_models import CONTEXT_LENGTH, write_modernbert
from tiny_tokenizer import IM_END, MASK, VOCAB_SIZE, write_tiny_tokenizer

SECTION = {
    "mask_token_id": MASK,
    "stop_token_ids": [IM_END],
    "never_emit_token_ids": [0, 2, MASK],
    "can_edit": True,
}


@pytest.fixture(scope="module", params=[None, 8], ids=["bidirectional", "block_causal"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_modernbert(
        path, block_length=request.param, vocab_size=VOCAB_SIZE, seed=3, section=SECTION
    )
    return write_tiny_tokenizer(path)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.from_pretrained(folder, dtype="float32", max_tokens=256)


def mixed_params(index: int, *, block_causal: bool) -> GenerationParams:
    """Fifteen kinds of neighbours: lengths, policies, temperatures, blocks, budgets."""
    policy = sorted(PRESETS)[index % len(PRESETS)]
    max_tokens = 5 + 7 * index % 40
    return GenerationParams(
        max_tokens=max_tokens,
        policy=policy,
        steps=2 * max_tokens
        if PRESETS[policy].tosses
        else max(max_tokens // 2, 8)
        if index % 3 and max_tokens > 8 and not PRESETS[policy].single
        else None,
        block_length=None if block_causal else (0, 8)[index % 2],
        temperature=(0.0, 0.7, 1.0)[index % 3],
        top_p=(1.0, 0.9)[index % 2],
        top_k=(0, 20)[index % 2],
        gap=1 + index % 3,
        edits=(None, EditParams(threshold=0.0, max_rounds=2))[index % 4 == 1],
        seed=index,
    )


def token_ids(
    engine: Engine, requests: list[tuple[list[int], GenerationParams]], place: int
) -> dict[int, int]:
    """Tokens of one request of several that start together."""
    prepared = [engine.prepare(*request) for request in requests]
    for each in prepared:
        engine.add(each)
    tokens: dict[int, int] = {}
    while not engine.is_idle:
        for frame in engine.step():
            if frame.request_id == prepared[place].request_id:
                tokens.update(frame.tokens)
    return tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_mode_is_bit_for_bit_the_same_in_any_company(folder: Path, dtype: str):
    engine = Engine.from_pretrained(
        folder, dtype=dtype, deterministic=True, token_budget=640, head_chunk=64, num_slots=16
    )
    block_causal = engine.info.attention == "block_causal"
    requests = [
        (
            [6 + (index * place) % 300 for place in range(1 + 2 * index)],
            mixed_params(index, block_causal=block_causal),
        )
        for index in range(len(PRESETS))
    ]
    for name in ("ancestral", "credit", "joint", "remdm_confidence", "verify"):
        place = sorted(PRESETS).index(name)
        alone = token_ids(engine, [requests[place]], 0)
        assert alone == token_ids(engine, requests, place)
        reordered = [*requests[place + 1 :], requests[place], *requests[:place]]
        assert alone == token_ids(engine, reordered, len(requests) - 1 - place)


def plain_loop(folder: Path, prompt: list[int], max_tokens: int) -> list[int]:
    """One token a step, most confident first, whole canvas, plain transformers in float32."""
    model = ModernBertForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([prompt + [MASK] * max_tokens])
    for _ in range(max_tokens):
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        logits[:, SECTION["never_emit_token_ids"]] = -torch.inf
        confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
        best = int(confidence.masked_fill(ids[0] != MASK, -1.0).argmax())
        ids[0, best] = predicted[best]
    return ids[0, len(prompt) :].tolist()


def test_greedy_confidence_gives_the_tokens_of_a_plain_transformers_loop(
    tmp_path: Path,
):
    write_modernbert(tmp_path, vocab_size=VOCAB_SIZE, seed=4, section=SECTION)
    engine = Engine.from_pretrained(tmp_path, dtype="float32")
    prompt = [9, 30, 200, 17]
    params = GenerationParams(
        max_tokens=40, policy="confidence", temperature=0.0, ignore_eos=True, block_length=0
    )
    company = mixed_params(4, block_causal=False)
    tokens = token_ids(engine, [([7] * 9, company), (prompt, params)], 1)
    assert [tokens[position] for position in range(40)] == plain_loop(tmp_path, prompt, 40)


def replayed(frames: list[Frame]) -> tuple[str, str]:
    """The concatenated content, and the text that replaying set and unset gives."""
    replay = Replay()
    for frame in frames:
        replay.apply(frame.set, frame.unset)
    return "".join(frame.content for frame in frames), replay.text


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize("policy", PRESETS)
def test_content_equals_the_replay_of_the_frames(engine: Engine, policy: str, data: st.DataObject):
    # A random model writes bytes at random: multi-byte characters, broken ones, end marks.
    max_tokens = data.draw(st.integers(1, 60))
    params = GenerationParams(
        max_tokens=max_tokens,
        policy=policy,
        steps=2 * max_tokens if PRESETS[policy].tosses else None,
        seed=data.draw(st.integers(0, 2**40)),
        temperature=data.draw(st.sampled_from([0.5, 1.0, 2.0])),
        stop=tuple(
            data.draw(st.lists(st.sampled_from(["e", "th", "\ufffd", " a", "é"]), max_size=2))
        ),
        gap=data.draw(st.integers(1, 3)),
        edits=data.draw(st.sampled_from([None, EditParams(threshold=0.0, max_rounds=3)])),
        watch=True,
    )
    prompt = data.draw(st.sampled_from(["", "the cat é 😀", "hello"]))
    frames = list(engine.stream(prompt, params))
    content, replay = replayed(frames)
    assert content == replay
    assert frames[0].step == 0
    assert frames[-1].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert not any(stop in content for stop in params.stop)
    unwatched = list(engine.stream(prompt, params.replace(watch=False)))
    assert "".join(frame.content for frame in unwatched) == content
    assert not any(frame.set or frame.unset for frame in unwatched)


def test_an_answer_longer_than_the_context_keeps_its_text(engine: Engine):
    params = GenerationParams(
        max_tokens=CONTEXT_LENGTH + 60,
        policy="threshold",
        block_length=engine.info.block_length or 16,
        temperature=1.0,
        seed=2,
        ignore_eos=True,
        watch=True,
    )
    frames = list(engine.stream("the cat", params))
    content, replay = replayed(frames)
    assert content == replay
    assert frames[-1].finish_reason is FinishReason.LENGTH
    assert frames[-1].masked == 0


def test_a_chat_is_encoded_by_the_folders_template(engine: Engine):
    ids = engine.encode_chat([{"role": "user", "content": "hi <|im_end|>"}])
    assert ids.count(IM_END) == 1
    completion = engine.generate([ids], GenerationParams(max_tokens=10, seed=1))[0]
    assert engine.decode(completion.token_ids) == completion.text
